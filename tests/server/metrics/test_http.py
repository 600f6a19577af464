from __future__ import annotations

import itertools
import json
import select
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fleet.errors import InputError
from server.metrics.exporter import Exporter
from server.metrics.http import LARGEST_HEAD, MOST_AT_ONCE, Door
from server.registry import Registry
from server.service.config import ServerConfig, save_config
from server.service.folder import ServerFolder
from tests.server.registry.filled import Clock

LIMIT_S = 60.0
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def asked(port: int, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    try:
        with OPENER.open(request, timeout=LIMIT_S) as found:
            return found.status, found.headers["Content-Type"], found.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def raw(port: int, content: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S) as connection:
        connection.sendall(content)
        return said(connection)


def said(connection: socket.socket) -> bytes:
    found = b""
    while more := connection.recv(65536):
        found += more
    return found


def test_metrics_are_served_as_prometheus_reads_them(door: Door) -> None:
    status, kind, body = asked(door.port, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    names = {family.name for family in text_string_to_metric_families(body.decode())}
    assert {"corefleet_rounds", "corefleet_round_seconds", "corefleet_registry_readable"} <= names
    for device in (b"ada", b"bob", b"cyd"):
        assert b'"' + device not in body
    assert asked(door.port, "/metrics?x=1")[0] == 200
    assert asked(door.port, "/metrics", "HEAD") == (200, kind, b"")


def test_health_and_readiness_say_why(
    door: Door, registry: Registry, clock: Clock, file: Path
) -> None:
    assert asked(door.port, "/health")[0] == 200
    status, kind, body = asked(door.port, "/ready")
    assert (status, kind) == (503, "application/json")
    told = json.loads(body)
    assert told["status"] == "not-ready"
    assert [reason["code"] for reason in told["reasons"]] == ["service-never-ran"]
    assert all(reason["message"] and reason["hint"] for reason in told["reasons"])
    registry.observations.beat(pid=7, version="0.1.0", started_at_s=0.0, doing={})
    assert asked(door.port, "/ready")[::2] == (200, b'{"status": "ready", "reasons": []}\n')
    file.unlink()
    assert asked(door.port, "/health")[0] == 503
    assert asked(door.port, "/metrics")[0] == 200


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"GET /metrics/ HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", 405),
        (b"GET /metrics\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nA: " + b"a" * LARGEST_HEAD, 431),
    ],
)
def test_what_is_no_question_of_ours_is_refused(door: Door, content: bytes, status: int) -> None:
    assert raw(door.port, content).startswith(f"HTTP/1.1 {status} ".encode())
    assert asked(door.port, "/health")[0] == 200


def test_a_caller_that_never_ends_its_request_is_cut_off(exporter: Exporter) -> None:
    with Door("127.0.0.1", 0, exporter, longest_s=0.2) as door:
        assert raw(door.port, b"GET /metrics HTTP/1.1\r\n").startswith(b"HTTP/1.1 408 ")


def test_a_caller_that_drips_has_no_more_time_than_one_that_is_silent(exporter: Exporter) -> None:
    seconds = itertools.count()
    with (
        Door("127.0.0.1", 0, exporter, now=lambda: float(next(seconds))) as door,
        socket.create_connection(("127.0.0.1", door.port), LIMIT_S) as connection,
    ):
        for _ in range(100):
            connection.sendall(b"a")
            if select.select([connection], [], [], 0.02)[0]:
                break
        else:
            pytest.fail("each byte bought more time")
        assert said(connection).startswith(b"HTTP/1.1 408 ")


def test_requests_at_work_are_bounded_and_the_next_is_turned_away(door: Door) -> None:
    with ExitStack() as held:
        for _ in range(MOST_AT_ONCE):
            held.enter_context(socket.create_connection(("127.0.0.1", door.port), LIMIT_S))
        late = held.enter_context(socket.create_connection(("127.0.0.1", door.port), LIMIT_S))
        assert said(late).startswith(b"HTTP/1.1 503 ")


def test_a_port_that_is_taken_is_told(door: Door, exporter: Exporter) -> None:
    with pytest.raises(InputError) as caught:
        Door("127.0.0.1", door.port, exporter)
    assert caught.value.code == "port-taken"


def test_the_process_serves_a_servers_folder_until_it_is_told_to_end(
    file: Path, tmp_path: Path
) -> None:
    folder = ServerFolder(tmp_path / "server")
    folder.make()
    save_config(ServerConfig(), folder)
    shutil.copyfile(file, folder.path / "registry.sqlite")
    command = [sys.executable, "-m", "server.metrics", "--folder", str(folder.path)]
    with subprocess.Popen([*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE) as run:
        try:
            assert run.stdout is not None
            ready = json.loads(run.stdout.readline())
            assert ready["event"] == "metrics.ready"
            port = int(ready["address"].rpartition(":")[2])
            assert b"corefleet_updates_accepted_total 5.0\n" in asked(port, "/metrics")[2]
            run.send_signal(signal.SIGTERM)
            assert run.wait(LIMIT_S) == 0
        finally:
            run.kill()
