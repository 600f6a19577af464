from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fleet.adapt.base import Base
from fleet.errors import FleetError, StorageError
from fleet.supervise.child import Exit
from fleet.supervise.ward import Spec, World
from server.rebasing import rebase
from server.registry import open_registry
from server.service import doctor
from server.service.authority import SERVER_DAYS
from server.service.config import (
    ControlApi,
    Front,
    MetricsPage,
    Service,
    SuperLink,
    load_config,
    save_config,
)
from server.service.doctor import CHECKS, examine
from server.service.folder import ServerFolder
from server.service.front.listen import tls_of
from server.service.processes import (
    CERTIFICATE_EVERY_S,
    CertificateWear,
    HealthGate,
    is_healthy,
    specs_of,
)
from server.service.setup import renewed
from server.standing.policy import FleetPolicy
from tests.flower_processes import free_port
from tests.server.control.rebasing import NEW, OLD, RELEASE, on_a_release
from tests.server.service.fronting import made_folder

NOW = datetime.now(timezone.utc)


@dataclass
class Clock:
    seconds: float = 0.0

    def world(self) -> World:
        return World(lambda: self.seconds, lambda: NOW, lambda: 0.5)


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def health(server_folder: ServerFolder) -> Iterator[str]:
    """Address of a server that is healthy."""
    server = HTTPServer(("127.0.0.1", 0), Healthy)
    context = tls_of(server_folder.certificate, server_folder.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    return made_folder(tmp_path / "server")


def specs(folder: ServerFolder) -> dict[str, Spec]:
    return {spec.name: spec for spec in specs_of(folder, load_config(folder), {"LANG": "C"})}


def test_the_superlink_is_on_loopback_with_every_lock_that_it_has(folder: ServerFolder) -> None:
    words = list(specs(folder)["superlink"].command)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--isolation") + 1] == "process"
    assert {"--enable-supernode-auth", "--database", "--superexec-auth-secret-file"} <= set(words)
    assert "--insecure" not in words
    assert folder.superexec_secret.read_text() not in words


def test_the_front_starts_last_and_so_ends_first(folder: ServerFolder) -> None:
    found = specs(folder)
    assert list(found) == ["superlink", "superexec", "front"]
    assert [spec.gate is None for spec in found.values()] == [True, False, False]
    assert [spec.recycled_on_hangup for spec in found.values()] == [False, False, True]


def test_keeper_and_control_api_are_there_where_they_are_wanted(folder: ServerFolder) -> None:
    config = load_config(folder)
    parts = {"service": Service(standing=True), "control": ControlApi(listen="127.0.0.1:9443")}
    save_config(config.model_copy(update=parts), folder)
    found = specs(folder)
    assert list(found)[2:] == ["front", "keeper", "control"]
    assert found["control"].command[-2:] == ["--listen", "127.0.0.1:9443"]
    envelope = json.dumps({"error_code": "bad-address", "message": "no", "hint": ""})
    told = found["control"].final(Exit(4), [envelope])
    assert told is not None
    assert (told.code, told.message) == ("bad-address", "no")
    assert found["keeper"].final(Exit(1), [envelope]) is None


def test_metrics_are_there_where_they_are_wanted_and_wait_for_nobody(folder: ServerFolder) -> None:
    config = load_config(folder)
    assert "metrics" not in specs(folder)
    wanted = {"metrics": MetricsPage(listen="127.0.0.1:9464")}
    save_config(config.model_copy(update=wanted), folder)
    found = specs(folder)["metrics"]
    assert found.command[-2:] == ["--listen", "127.0.0.1:9464"]
    assert found.gate is None  # they tell of a SuperLink that is away


def test_processes_of_flower_are_quiet_and_find_each_other(folder: ServerFolder) -> None:
    found = specs_of(folder, load_config(folder), {"PATH": "/bin", "NO_PROXY": "a.example"})
    environment = found[0].environment
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]
    assert environment["NO_PROXY"] == "127.0.0.1,localhost,a.example"
    assert environment["FLWR_HOME"] == str(folder.flower_home)


def test_health_is_asked_with_the_authority_alone(
    health: str, server_folder: ServerFolder, folder: ServerFolder
) -> None:
    assert is_healthy(f"{health}/health", server_folder.authority)
    assert not is_healthy(f"{health}/other", server_folder.authority)
    assert not is_healthy(f"{health}/health", folder.authority)
    assert not is_healthy(f"https://127.0.0.1:{free_port()}/health", folder.authority)


def test_a_gate_opens_once_the_superlink_answers(health: str, server_folder: ServerFolder) -> None:
    gate = HealthGate(f"{health}/health", server_folder.authority)
    assert gate.look(Clock().world()).is_open


def test_a_superlink_that_stays_silent_ends_the_service(server_folder: ServerFolder) -> None:
    clock = Clock()
    url = f"https://127.0.0.1:{free_port()}/health"
    gate = HealthGate(url, server_folder.authority, limit_s=10.0)
    sight = gate.look(clock.world())
    assert (sight.is_open, sight.failure) == (False, None)
    assert 0 < sight.next_s < 1
    clock.seconds = 10.0
    failure = gate.look(clock.world()).failure
    assert failure is not None
    assert (failure.code, failure.exit_code) == ("superlink-silent", 2)


def test_a_process_is_recycled_once_its_certificate_is_another(folder: ServerFolder) -> None:
    config, clock, asked = load_config(folder), Clock(), [NOW]

    def renew(now: datetime) -> bool:
        return renewed(folder, config, asked[0])

    wear = CertificateWear((folder.certificate, folder.key), partial(renew))
    world = clock.world()
    assert wear.observe(world, is_up=True) == ""
    asked[0] = NOW + timedelta(days=SERVER_DAYS - 1)
    assert wear.observe(world, is_up=True) == ""
    clock.seconds += CERTIFICATE_EVERY_S
    assert wear.observe(world, is_up=True) == "its certificate is new"
    clock.seconds += CERTIFICATE_EVERY_S
    assert wear.observe(world, is_up=True) == ""


def test_a_certificate_that_cannot_be_renewed_stops_nothing(folder: ServerFolder) -> None:
    def renew(now: datetime) -> bool:
        raise StorageError("disk-full", "full")

    clock = Clock()
    wear = CertificateWear((folder.certificate,), partial(renew))
    for _ in range(2):
        assert wear.observe(clock.world(), is_up=True) == ""
        clock.seconds += CERTIFICATE_EVERY_S


@pytest.mark.parametrize(
    ("name", "status", "line", "code"),
    [
        ("superlink", 1, "ERROR: [Errno 98] address already in use", "port-taken"),
        ("superlink", 1, "Exit Code: 105", "superlink-refused"),
        ("superlink", 1, "Exit Code: 305", ""),
        ("superlink", -9, "", ""),
        ("superexec", 1, "Exit Code: 401", ""),
        ("front", 4, json.dumps({"code": "x", "detail": "d", "hint": "h"}), "x"),
        ("front", 4, "strange", ""),
        ("front", 1, json.dumps({"code": "x", "detail": "d", "hint": "h"}), ""),
    ],
)
def test_ends_that_a_restart_cannot_mend(
    folder: ServerFolder, name: str, status: int, line: str, code: str
) -> None:
    error = specs(folder)[name].final(Exit(status), [line])
    assert (error.code if isinstance(error, FleetError) else "") == code


def results(folder: ServerFolder, check: str, now: datetime = NOW) -> list[str]:
    return [each.result for each in examine(folder, now) if each.check == check]


def test_a_fresh_server_is_sound(folder: ServerFolder) -> None:
    made = load_config(folder)
    ports = {"front": Front(port=free_port()), "superlink": SuperLink(port=free_port())}
    save_config(made.model_copy(update=ports), folder)
    findings = examine(folder, NOW)
    assert {each.check for each in findings} == {"config", *CHECKS}
    assert {each.check for each in findings if each.result != "ok"} == {"health"}
    assert all(bool(each.fix) == (each.result != "ok") for each in findings)


def test_the_doctor_finds_what_is_wrong(folder: ServerFolder) -> None:
    folder.key.chmod(0o640)
    assert "fail" in results(folder, "permissions")
    folder.superexec_secret.unlink()
    assert results(folder, "permissions").count("fail") == 2
    near = NOW + timedelta(days=SERVER_DAYS - 10)
    assert results(folder, "certificates", near) == ["ok", "warn"]
    assert results(folder, "certificates", near + timedelta(days=20)) == ["ok", "fail"]
    folder.certificate.write_text("no certificate")
    assert results(folder, "certificates")[-1] == "fail"
    folder.config.write_text("typo = 1")
    [only] = examine(folder, NOW)
    assert (only.check, only.result) == ("config", "fail")


def test_the_doctor_of_a_standing_server_looks_for_the_policys_base(
    folder: ServerFolder, tiny_base: Base, tiny_base_file: Path
) -> None:
    assert results(folder, "base") == ["ok"]  # there is no standing service
    config = load_config(folder).model_copy(update={"service": Service(standing=True)})
    save_config(config, folder)

    def found() -> tuple[str, str]:
        [only] = [each for each in examine(folder, NOW) if each.check == "base"]
        return only.result, only.fix

    assert found() == ("warn", "Install one: fleet base install FILE")
    with open_registry(folder.path / "registry.sqlite", clock=NOW.timestamp) as registry:
        assert found() == ("warn", "Install one: fleet base install FILE")
        registry.policy.set(FleetPolicy(base=tiny_base.digest), actor="anna")
        assert found() == ("fail", "Install it: fleet base install FILE")
        registry.bases.install(tiny_base.digest, tiny_base_file, actor="anna")
        assert found() == ("ok", "")


def test_the_doctor_looks_at_the_base_that_rounds_train_on_after_a_rebase(
    folder: ServerFolder,
) -> None:
    config = load_config(folder).model_copy(update={"service": Service(standing=True)})
    save_config(config, folder)

    def found() -> tuple[str, str]:
        [only] = [each for each in examine(folder, NOW) if each.check == "base"]
        return only.result, only.detail + only.fix

    with open_registry(folder.path / "registry.sqlite", clock=NOW.timestamp) as registry:
        on_a_release(registry)
        registry.policy.set(FleetPolicy(base=NEW.digest, rank=2), actor="anna")
        result, told = found()
        assert (result, f"fleet release rebase {NEW.digest}" in told) == ("fail", True)
        assert "none that the fleet came over: no round can open" in told
        registry.policy.set(FleetPolicy(base=OLD.digest, rank=2), actor="anna")
        assert found() == ("ok", f"the policy's base {OLD.digest[:12]}… is installed")
        release = rebase(OLD, RELEASE, NEW, number=1).release
        registry.releases.add(release, actor="anna")
        registry.releases.promote(1, actor="anna")
        assert found() == ("ok", f"the fleet's base {NEW.digest[:12]}… is installed")
        registry.policy.set(FleetPolicy(base=NEW.digest, rank=2), actor="anna")
        assert found() == ("ok", f"the policy's base {NEW.digest[:12]}… is installed")


def test_the_doctor_finds_a_port_that_is_taken(folder: ServerFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = load_config(folder).model_copy(update={"superlink": SuperLink(port=port)})
        save_config(config, folder)
        assert "fail" in results(folder, "ports")
        assert results(folder, "exposure") == ["ok"]
    with socket.create_server(("0.0.0.0", port)):
        assert results(folder, "exposure") == ["fail"]


def test_a_check_that_breaks_is_a_finding(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: 1 / 0)
    assert results(folder, "versions") == ["warn"]
