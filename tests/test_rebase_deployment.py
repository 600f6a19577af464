"""A real server sends a base through its front to devices that lack it, and a round goes on."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fleet.adapt.base import Base, bytes_of_base
from fleet.adapt.digest import digest_arrays
from fleet.federate.releases import base_with
from fleet.federate.served import merge_release
from fleet.federate.wire import BASE_MISSING, LARGEST_BUNDLE_BYTES, decode_plan
from server.control import requests as r
from server.messages import payload_of
from tests.server.registry.filled import OPERATOR
from tests.server.standing.standing import update
from tests.server.standing.two_bases import declined, made_from
from tests.simulations.tiny_fleet import tiny_base, tiny_base_file, tiny_data
from tests.test_hostile_deployment import LIMIT_S, Server, policy, server
from tests.wire_devices import WireDevice, at_work

__all__ = ["server", "tiny_base", "tiny_base_file", "tiny_data"]

pytestmark = [pytest.mark.e2e, pytest.mark.deployment, pytest.mark.timeout(600)]

# What the text of the record adds to the header besides its own characters, with much to spare.
ROOM_BYTES = 2**20


class Follower:
    """What devices do that hold one base and take another one from a message."""

    def __init__(self, server: Server, base: Base) -> None:
        self.server, self.lock = server, threading.Lock()
        self.holds: dict[str, dict[str, Base]] = {}
        self.serves: dict[str, int] = {}
        self.trained: list[tuple[str, str]] = []
        self.sent: list[tuple[str, int, float]] = []
        self.first = base

    def __call__(self, device: WireDevice, message: Message) -> Message:
        kind = message.metadata.message_type
        payload = payload_of(message.content)
        with self.lock:
            holds = self.holds.setdefault(device.name, {self.first.digest: self.first})
            if kind == "train":
                self.trained.append((device.name, decode_plan(payload).base))
                return update(message, device.name)
            if kind == "query.release":
                brought = base_with(payload)
                if brought is not None:
                    holds[brought.digest] = brought
                    size = len(bytes_of_base(brought))
                    self.sent.append((device.name, size, time.monotonic()))
                if payload.config["base"] not in holds:
                    return declined(message, BASE_MISSING)
                self.serves[device.name] = int(str(payload.config["release"]))
            return self._status(device.name, message)

    def _status(self, name: str, message: Message) -> Message:
        number = self.serves.get(name, 0)
        config: dict[str, Any] = {"device": name, "train_windows": 20, "test_windows": 10}
        config |= {"reason": "", "release": number, "serves": "5e" * 32}
        releases = self.server.registry.releases
        if releases.next_number() > number:
            release = releases.load(number)
            held = self.holds[name].get(release.base)
            if held is not None:
                config["serves"] = digest_arrays(merge_release(held, release))
        return Message(RecordDict({"config": ConfigRecord(config)}), reply_to=message)


@pytest.mark.parametrize("largest", [False, True])
def test_devices_follow_a_rebase_through_the_front_and_train_on_the_new_base(
    server: Server, tiny_base: Base, largest: bool
) -> None:
    follower = Follower(server, tiny_base)
    devices = [server.device("ada", follower), server.device("bob", follower)]
    server.registry.policy.set(policy(tiny_base, rounds=1), actor=OPERATOR)
    registry = server.registry
    with at_work(devices):
        server.until(lambda: follower.serves == {"ada": 1, "bob": 1})
        base = made_from(tiny_base, registry.releases.load(1).state)
        if largest:
            text = "x" * (LARGEST_BUNDLE_BYTES - len(bytes_of_base(base)) - ROOM_BYTES)
            base = replace(base, record=base.record.model_copy(update={"trained_on": text}))
        file = server.folder.path / "second.safetensors"
        file.write_bytes(bytes_of_base(base))
        assert file.stat().st_size <= min(r.LARGEST_BASE, LARGEST_BUNDLE_BYTES)
        assert server.ask("base", "install", file)["base"]["digest"] == base.digest
        words = ("release", "rebase", base.digest, "--yes", "--timeout", LIMIT_S)
        assert server.ask(*words)["result"]["release"] == 2
        server.until(lambda: follower.serves == {"ada": 2, "bob": 2})
        assert sorted(name for name, _, _ in follower.sent) == ["ada", "bob"]
        assert {size for _, size, _ in follower.sent} == {file.stat().st_size}
        server.registry.policy.set(policy(tiny_base, rounds=2), actor=OPERATOR)
        server.until(lambda: registry.releases.next_number() > 3)
        server.until(lambda: follower.serves == {"ada": 3, "bob": 3})
        assert server.ask("release", "rollback", 1, "--yes")["release"]["number"] == 1
        server.until(lambda: follower.serves == {"ada": 1, "bob": 1})
    assert {base for _, base in follower.trained[-2:]} == {base.digest}
    assert len(follower.sent) == 2
    assert registry.replay(1).same
    assert registry.replay(2).same
    assert server.ask("release", "verify")["sound"] is True
    registry.audit.verify()
