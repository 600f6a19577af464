"""Hostile devices at a real server: enrolled keys, real messages, all from outside the front."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fleet.adapt.base import Base
from fleet.federate.admission import Reason
from server.control.cli.root import run
from server.pulling import UNREADABLE
from server.registry import Registry, open_registry
from server.service.config import load_config, save_config
from server.service.folder import ServerFolder
from server.standing.policy import FleetPolicy
from tests.fleet.supervise.running import Running
from tests.flower_processes import free_port, program
from tests.server.registry.filled import OPERATOR
from tests.server.standing.standing import update
from tests.simulations.tiny_fleet import RATE, tiny_base, tiny_base_file, tiny_data
from tests.wire_devices import WireDevice, at_work

__all__ = ["tiny_base", "tiny_base_file", "tiny_data"]

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

HUGE_BYTES = 100 * 10**6
# Of a device per minute; a busy machine may take a minute for what the default allows.
DEVICE_BYTES = 20 * 2**20
LIMIT_S = 180.0
LOOK_S = 0.1


def honest(device: WireDevice, message: Message) -> Message:
    """Answer as a device that serves what it is told, and makes its updates up."""
    kind = message.metadata.message_type
    if kind == "train":
        return update(message, device.name)
    name = device.name
    config = ConfigRecord({"device": name, "train_windows": 20, "test_windows": 10, "reason": ""})
    return Message(RecordDict({"config": config}), reply_to=message)


@dataclass
class Server:
    """A standing server that runs, and the devices of a test."""

    folder: ServerFolder
    registry: Registry
    running: Running
    capture: pytest.CaptureFixture[str]
    devices: dict[str, WireDevice] = field(default_factory=dict)

    def ask(self, *words: object) -> dict[str, Any]:
        """Run a command of ``fleet``; return the data that it printed."""
        self.capture.readouterr()
        run([*map(str, words), "--folder", str(self.folder.path), "--format", "json"])
        printed: dict[str, Any] = json.loads(self.capture.readouterr().out)
        assert printed["status"] == "ok", printed
        data: dict[str, Any] = printed["data"]
        return data

    def device(self, name: str, answer: Any = honest, *, enrolled: bool = True) -> WireDevice:
        """Make a device, enrolled if so wanted; it does not come yet."""
        config = load_config(self.folder)
        state = self.folder.path / name
        made = WireDevice(name, state, config.address, self.folder.authority.read_bytes(), answer)
        if enrolled:
            self.ask("device", "enroll", made.key, "--name", name)
        self.devices[name] = made
        return made

    def until(self, true: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
        """Look until something is so; return it."""
        deadline, paced = time.monotonic() + limit_s, threading.Event()
        while not (found := true()):
            assert time.monotonic() < deadline, self.logs()
            paced.wait(LOOK_S)
        return found

    def logs(self) -> str:
        paths = sorted((self.folder.path / "log").glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in paths)

    def front_says(self, reason: str) -> int:
        """Return how often the front refused something for a reason."""
        return (self.folder.path / "log" / "front.log").read_text().count(f'"reason": "{reason}"')


@pytest.fixture
def server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_base: Base, tiny_base_file: Path
) -> Iterator[Server]:
    folder = ServerFolder(tmp_path / "server")
    ports = ["--port", str(free_port()), "--superlink-port", str(free_port())]
    place = ["--folder", str(folder.path), "--format", "json"]
    run(["server", "init", "--standing", *ports, *place])
    config = load_config(folder)
    limits = config.limits.model_copy(update={"bytes_per_minute": DEVICE_BYTES})
    save_config(config.model_copy(update={"limits": limits}), folder)
    with contextlib.ExitStack() as stack:
        path = folder.path / "registry.sqlite"
        registry = stack.enter_context(open_registry(path, clock=time.time))
        registry.bases.install(tiny_base.digest, tiny_base_file, actor=OPERATOR)
        running = Running([program("fleet"), "server", "up", *place], uuid.uuid4().hex)
        stack.callback(running.close)
        running.until("server.ready")
        yield Server(folder, registry, running, capsys)
        assert running.end(signal.SIGINT) == 130
        assert running.all_gone()


def policy(base: Base, **changes: Any) -> FleetPolicy:
    fields = {"base": base.digest, "rank": 2, "learning_rate": RATE, "batch": 16, "every_s": 0.5}
    return FleetPolicy.parse({**fields, "minimum": 2, "quorum": 2, "deadline_s": 60.0, **changes})


def huge(message: Message, honest_reply: Message) -> Message:
    """Return a reply whose array has a hundred million bytes."""
    values = np.arange(HUGE_BYTES // 4, dtype=np.float32)  # equal pieces would travel once
    content = RecordDict({"arrays": ArrayRecord({"packed": Array(values)})})
    content["config"] = honest_reply.content["config"]
    return Message(content, reply_to=message)


def test_a_hundred_megabytes_a_revoked_key_and_an_unknown_one_do_not_stop_a_round(
    server: Server, tiny_base: Base
) -> None:
    one_body: list[int] = []
    asked = threading.Event()

    def large(device: WireDevice, message: Message) -> Message | None:
        reply = honest(device, message)
        if message.metadata.message_type != "train" or one_body:
            return reply
        try:
            device.push_object(message, "session", "0" * 64, bytes(HUGE_BYTES))
        except httpx.HTTPStatusError as error:
            one_body.append(error.response.status_code)
        return huge(message, reply)

    def silent(device: WireDevice, message: Message) -> Message | None:
        if message.metadata.message_type != "train":
            return honest(device, message)
        asked.set()
        return None

    stranger = server.device("stranger", enrolled=False)
    devices = [server.device("ada"), server.device("bob")]
    devices += [server.device("big", large), server.device("gone", silent), stranger]
    server.registry.policy.set(policy(tiny_base, minimum=4, rounds=1), actor=OPERATOR)
    with at_work(devices):
        assert stranger.refused.wait(LIMIT_S)
        assert asked.wait(LIMIT_S)
        server.until(lambda: one_body)
        server.ask("device", "revoke", "gone", "--why", "stolen", "--yes")
        assert server.devices["gone"].refused.wait(LIMIT_S)
        server.until(lambda: server.registry.releases.next_number() > 1)
        # Another round, in which the large one has thought better of it.
        change = policy(tiny_base, minimum=3, quorum=3, rounds=2)
        server.registry.policy.set(change, actor=OPERATOR)
        server.until(lambda: server.registry.releases.next_number() > 2)
    refused = {each.device: each for each in server.registry.rounds.refusals(1)}
    assert {name: each.reason.value for name, each in refused.items()} == {
        "big": "failed",
        "gone": "unselected",
    }
    assert refused["big"].detail.startswith(f"{UNREADABLE}: it has more than")
    assert "revoked" in refused["gone"].detail
    assert one_body == [413]
    assert server.front_says("body-too-large") == 1
    assert server.front_says("volume") >= 1
    assert {each.device for each in server.registry.rounds.updates(1)} == {"ada", "bob"}
    assert {each.device for each in server.registry.rounds.updates(2)} == {"ada", "bob", "big"}
    assert server.registry.replay(1).same
    server.registry.audit.verify()
    assert (stranger.statuses, server.devices["gone"].statuses) == ([412], [401])


def half_sent(device: WireDevice, reply: Message) -> None:
    """Announce a reply, and never send what it is made of."""
    device.announce(reply, reply)


def of_no_message(device: WireDevice, reply: Message) -> None:
    """Announce a reply that turns out to be no message: the SuperLink takes any known object."""
    device.send(reply, reply.content["config"])


@pytest.mark.faults
@pytest.mark.parametrize(
    ("attack", "reason", "detail"),
    [(half_sent, Reason.no_reply, ""), (of_no_message, Reason.failed, UNREADABLE)],
)
def test_a_reply_that_can_never_be_read_does_not_stop_a_round(
    server: Server,
    tiny_base: Base,
    attack: Callable[[WireDevice, Message], None],
    reason: Reason,
    detail: str,
) -> None:
    asked = threading.Event()

    def hostile(device: WireDevice, message: Message) -> Message | None:
        reply = honest(device, message)
        if message.metadata.message_type != "train":
            return reply
        attack(device, reply)
        asked.set()
        return None

    devices = [server.device("ada"), server.device("bob"), server.device("evil", hostile)]
    deadline_s = 20.0
    rules = policy(tiny_base, minimum=3, rounds=1, deadline_s=deadline_s)
    server.registry.policy.set(rules, actor=OPERATOR)
    with at_work(devices):
        assert asked.wait(LIMIT_S)
        server.until(lambda: server.registry.releases.next_number() > 1, 4 * deadline_s)
    assert {each.device for each in server.registry.rounds.updates(1)} == {"ada", "bob"}
    (refused,) = server.registry.rounds.refusals(1)
    assert (refused.device, refused.reason) == ("evil", reason)
    assert refused.detail.startswith(detail)
