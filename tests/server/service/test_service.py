"""A server as an operator runs it: real processes on free ports, seen from outside the front."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from clients.agent.config import PRIVATE_KEY, PUBLIC_KEY, DeviceConfig
from clients.agent.doctor.enrolled import check_enrolled
from clients.agent.doctor.finding import Result, Subject
from clients.agent.keys import make_keys, read_private_key
from clients.agent.service import supernode_command, supernode_environment
from server.control.cli.root import run
from server.flower_control import UnreachableError, control_of, public_key_of
from server.service.config import load_config
from server.service.folder import ServerFolder
from tests.fleet.supervise.running import LIMIT_S, MARKER, Running
from tests.flower_processes import free_port, program

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    return ServerFolder(tmp_path / "server")


@pytest.fixture
def ask(folder: ServerFolder, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Run a command of ``fleet`` on the server; return the JSON that it printed."""

    def ask(*words: object) -> dict[str, Any]:
        run([*map(str, words), "--folder", str(folder.path), "--format", "json"])
        printed: dict[str, Any] = json.loads(capsys.readouterr().out)
        return printed

    return ask


@pytest.fixture
def server(folder: ServerFolder, ask: Ask) -> Iterator[Running]:
    ask("server", "init", "--port", free_port(), "--superlink-port", free_port())
    words = ["server", "up", "--folder", str(folder.path), "--format", "json"]
    running = Running([program("fleet"), *words], uuid.uuid4().hex)
    try:
        yield running
    finally:
        running.close()


class Device:
    """A device with a key of its own; its SuperNode is Flower's."""

    def __init__(self, name: str, state: Path, folder: ServerFolder, mark: str) -> None:
        state.mkdir(mode=0o700)
        make_keys(state, name)
        self.state, self.key = state, state / PUBLIC_KEY
        self.config = DeviceConfig(
            name=name,
            server=load_config(folder).address,
            root_certificate=str(folder.authority),
            supernode_port=free_port(),
        )
        self._mark = mark

    def start(self) -> subprocess.Popen[bytes]:
        own = supernode_environment(self.config, self.state)
        with (self.state / "log").open("wb") as log:
            return subprocess.Popen(
                supernode_command(self.config, self.state),
                env={**os.environ, **own, MARKER: self._mark},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def calls(self, node_id: int) -> tuple[int, int]:
        """Activate, and give a sign of life as a node; return the HTTP statuses."""
        private = read_private_key(self.state / PRIVATE_KEY)
        client = FleetHttpClient.from_server_address(
            server_address=self.config.server,
            insecure=False,
            root_certificates=self.config.certificate_path(self.state).read_bytes(),
            interceptors=[NodeAuthHttpInterceptor(private, private.public_key())],
        )
        public = public_key_to_bytes(private.public_key())
        activate = ActivateNodeRequest(public_key=public, heartbeat_interval=30)
        beat = SendNodeHeartbeatRequest(node=Node(node_id=node_id), heartbeat_interval=30)
        try:
            return (
                status(lambda: client.ActivateNode(activate)),
                status(lambda: client.SendNodeHeartbeat(beat)),
            )
        finally:
            client.close()


def status(call: Callable[[], object]) -> int:
    try:
        call()
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 200


def until(is_so: Callable[[], bool]) -> None:
    deadline, paced = time.monotonic() + LIMIT_S, threading.Event()
    while not is_so():
        assert time.monotonic() < deadline
        paced.wait(0.2)


def states(answer: dict[str, Any]) -> dict[str, str]:
    """How the transport knows each device; how the registry does where it does not."""
    return {each["name"]: each["link"] or each["state"] for each in answer["data"]["devices"]}


def asked(device: Device) -> Result:
    """What the device's doctor finds about its enrolment."""
    return check_enrolled(Subject(device.state, device.config, sys.executable)).result


def closed(folder: ServerFolder) -> list[int]:
    """Ask from outside for what only the operator may; return the HTTP statuses."""
    trust = ssl.create_default_context(cafile=str(folder.authority))
    with httpx.Client(verify=trust, trust_env=False, timeout=LIMIT_S) as caller:
        front = f"https://{load_config(folder).address}"
        body = {"content": b"", "headers": {"content-type": "application/protobuf"}}
        paths = ("control/list-nodes", "control/start-run", "runtime/acquire-task")
        return [caller.post(f"{front}/v1/{path}", **body).status_code for path in paths]


def test_a_server_is_open_to_enrolled_devices_and_closed_to_all_others(
    server: Running, folder: ServerFolder, ask: Ask, tmp_path: Path
) -> None:
    ready = server.until("server.ready")
    config = load_config(folder)
    assert ready["address"] == config.address
    known = Device("kitchen-1", tmp_path / "known", folder, server.mark)
    foreign = Device("stranger", tmp_path / "foreign", folder, server.mark)

    assert closed(folder) == [404, 404, 404]
    with control_of(config.address, folder.authority) as outside:
        for forbidden in (outside.nodes, lambda: outside.enroll(b"key", "x")):
            with pytest.raises(UnreachableError):
                forbidden()
    trust = ssl.create_default_context(cafile=str(folder.authority))
    with httpx.Client(verify=trust, trust_env=False, timeout=LIMIT_S) as inside:
        # Not even from loopback, without the SuperExec's secret.
        url = f"https://{config.superlink_address}/v1/runtime/acquire-task"
        header = {"content-type": "application/protobuf"}
        assert inside.post(url, content=b"", headers=header).status_code == 401
        assert inside.get(f"https://{config.address}/health").status_code == 200

    assert ask("device", "list")["data"]["devices"] == []
    enrolled = ask("device", "enroll", known.key, "--name", "kitchen-1")["data"]
    node_id = int(enrolled["node"])
    refused = ask("device", "enroll", known.key, "--name", "b")
    assert refused["error_code"] == "key-known"
    assert "move node-key and node-key.pub aside, then: fleet-device init" in refused["hint"]
    taken = ask("device", "enroll", foreign.key, "--name", "kitchen-1")
    assert (taken["error_code"], taken["exit_code"]) == ("name-taken", 4)
    # Neither by a key of its own nor in another's name.
    assert foreign.calls(node_id) == (412, 401)
    supernode, stranger = known.start(), foreign.start()
    until(lambda: states(ask("device", "list")) == {"kitchen-1": "online"})
    assert stranger.wait(LIMIT_S) != 0
    shown = ask("server", "status")["data"]
    assert (shown["running"], shown["healthy"]) == (True, True)
    assert {each["alive"] for each in shown["run"]["processes"].values()} == {True}
    health = ask("server", "doctor")["data"]
    assert health["result"] == "ok", health

    # The doctor asks with the key of a node that is online, and changes nothing.
    assert (asked(known), asked(foreign)) == (Result.ok, Result.fail)
    assert states(ask("device", "list")) == {"kitchen-1": "online"}

    tried = ask("device", "revoke", "kitchen-1", "--dry-run")["data"]
    assert tried["touches"]["devices"] == ["kitchen-1"]
    assert states(ask("device", "list")) == {"kitchen-1": "online"}
    assert ask("device", "revoke", "kitchen-1")["error_code"] == "not-confirmed"
    assert ask("device", "revoke", "kitchen-1", "--yes")["status"] == "ok"
    assert known.calls(node_id) == (412, 401)
    assert asked(known) is Result.fail
    assert supernode.wait(LIMIT_S) is not None
    assert states(ask("device", "list")) == {}
    assert states(ask("device", "list", "--all")) == {"kitchen-1": "revoked"}
    again = ask("device", "enroll", known.key, "--name", "kitchen-2")
    assert (again["error_code"], "stays revoked" in again["message"]) == ("key-known", True)
    assert ask("device", "revoke", "kitchen-1", "--yes")["status"] == "ok"
    assert ask("device", "revoke", "kitchen-2", "--yes")["error_code"] == "no-such-device"

    assert server.end(signal.SIGINT) == 130
    assert server.all_gone()
    reasons = (folder.path / "log" / "front.log").read_text()
    assert reasons.count('"reason": "path-closed"') == 5
    assert states(ask("device", "list", "--all")) == {"kitchen-1": "revoked"}
    assert ask("device", "enroll", foreign.key, "--name", "kitchen-2")["exit_code"] == 2


def test_the_public_key_of_a_device_is_read(tmp_path: Path) -> None:
    make_keys(tmp_path, "a")
    pem = public_key_of((tmp_path / PUBLIC_KEY).read_bytes())
    assert serialization.load_pem_public_key(pem) is not None
