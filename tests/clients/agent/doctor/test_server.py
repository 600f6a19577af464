from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace

import pytest

from clients.agent.config import DeviceConfig
from clients.agent.doctor.finding import Result, Subject
from clients.agent.doctor.server import check_server
from tests.clients.agent.doctor.authority import Authority, Serve


def at(subject: Subject, port: int, host: str = "127.0.0.1") -> Subject:
    return replace(subject, config=DeviceConfig(name="a", server=f"{host}:{port}"))


def test_a_server_whose_chain_ends_in_the_root_is_fine(
    subject: Subject, serve: Serve, authority: Authority
) -> None:
    finding = check_server(at(subject, serve(authority)))
    assert finding.result is Result.ok, finding
    assert "TLSv1" in finding.detail
    assert "valid until" in finding.detail
    assert "clocks differ by" in finding.detail


def test_a_server_of_another_root_is_not_trusted(subject: Subject, serve: Serve) -> None:
    finding = check_server(at(subject, serve(Authority())))
    assert finding.result is Result.fail
    assert "not trusted" in finding.detail


def test_a_certificate_that_has_ended_is_not_trusted(
    subject: Subject, serve: Serve, authority: Authority
) -> None:
    finding = check_server(at(subject, serve(authority, days=-0.5)))
    assert finding.result is Result.fail
    assert "expired" in finding.detail


def test_a_certificate_that_ends_soon_is_a_warning(
    subject: Subject, serve: Serve, authority: Authority
) -> None:
    finding = check_server(at(subject, serve(authority, days=5.5)))
    assert finding.result is Result.warn
    assert "ends in 5 days" in finding.detail


@pytest.mark.parametrize(
    ("skew_s", "result"), [(-172_800.0, Result.fail), (400.0, Result.fail), (30.0, Result.warn)]
)
def test_a_clock_beside_the_servers_is_found(
    subject: Subject, serve: Serve, authority: Authority, skew_s: float, result: Result
) -> None:
    finding = check_server(at(subject, serve(authority, skew_s=skew_s)))
    assert finding.result is result
    assert "clock" in finding.detail


def test_nobody_listening_is_told_with_a_fix(subject: Subject) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, not listening: the port refuses
        finding = check_server(at(subject, held.getsockname()[1]))
    assert finding.result is Result.fail
    assert "not reachable" in finding.detail
    assert finding.fix


def test_a_name_that_nobody_knows_is_told(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*arguments: object, **options: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    assert "not known" in check_server(at(subject, 443, "fleet.example")).detail


@pytest.mark.parametrize("greeting", [b"SSH-2.0-OpenSSH_9.6\r\n", b""])
def test_a_server_without_tls_and_one_that_says_nothing_end_in_time(
    subject: Subject, greeting: bytes
) -> None:
    done = threading.Event()

    def answer(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(greeting)
            done.wait(10)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,), daemon=True)
        thread.start()
        start = time.monotonic()
        finding = check_server(at(subject, server.getsockname()[1]), limit_s=0.5)
        assert finding.result is Result.fail
        assert time.monotonic() - start < 5
        done.set()
        thread.join(5)


def test_without_a_server_or_a_root_there_is_nothing_to_check(subject: Subject) -> None:
    assert check_server(subject).result is Result.skip
    assert check_server(replace(subject, config=None)).result is Result.skip
    (subject.state / "ca.crt").unlink()
    assert check_server(at(subject, 1)).result is Result.skip
