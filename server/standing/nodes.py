"""The roster: which enrolled device is behind which node, and which nodes nobody talks to.

Where nodes sign with keys, a node is whose key it has: one without an enrolled key is never asked
anything, and a device that says another's name is not believed. A simulation's nodes have no keys;
there a node is who it says it is. Nobody waits for an answer: a node that is online and silent is
known as such after its own deadline, and holds up nobody else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from flwr.app import Message

from fleet.errors import InputError, MismatchError
from fleet.federate.records import DeviceStatus
from fleet.federate.wire import Payload
from server.asking import ASK_AGAIN_S, Asking, status_of
from server.flower import NodeInfo
from server.registry import Registry
from server.registry.keys import fingerprint
from server.registry.records import Device, DeviceState
from server.standing.questions import Questions
from server.standing.world import World

__all__ = ["STATUS_EVERY_S", "Roster", "fingerprint_of"]

STATUS_EVERY_S = 300.0
"""How old a device's status may become before it is asked again."""
STATUS_S = 30.0
"""How long a node may take to say who it is; then it is silent until it is heard again."""
LARGEST_REFUSED = 10_000
"""Nodes that nobody talks to and of which the reason is kept."""
SHOWN = 500
_EMPTY = Payload(np.zeros(0, np.float32), {})


@dataclass
class Roster:
    """Knows the nodes of enrolled devices.

    Args:
        asking: Carries questions.
        registry: Who is enrolled.
        world: Clock and words.

    Attributes:
        devices: All that were ever enrolled, as the registry had them at the last look.
        nodes: Node of each enrolled device that was ever online; it may be offline now.
        online: Nodes that are online.
        statuses: What each device said of itself last.
        refused: The device, where it is known, and why a node is not talked to, by node.
        barred: Devices that may not take part in rounds any more, and what they are.
        due: When a node is asked next, monotonic seconds.
        silent: How often in a row a node that is online gave no answer.
        questions: Those under way, by node.
    """

    asking: Asking
    registry: Registry
    world: World
    devices: dict[str, Device] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    online: frozenset[int] = frozenset()
    statuses: dict[str, DeviceStatus] = field(default_factory=dict)
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    barred: dict[str, str] = field(default_factory=dict)
    due: dict[int, float] = field(default_factory=dict)
    silent: dict[int, int] = field(default_factory=dict)
    questions: Questions = field(init=False)

    def __post_init__(self) -> None:
        self.questions = Questions(self.asking, "query.status", STATUS_S)

    def here(self) -> dict[str, int]:
        """Return the node of each device that is online and may be talked to, by device."""
        return {d: node for d, node in sorted(self.nodes.items()) if node in self.online}

    def awake(self) -> dict[str, int]:
        """Return those of :meth:`here` that answer what they are asked."""
        return {device: node for device, node in self.here().items() if node not in self.silent}

    def silences(self) -> dict[str, str]:
        """Return what is known of devices that are online and do not answer, by device."""
        return {
            device: f"online, but {self.silent[node]} time(s) in a row no answer within "
            f"{STATUS_S:g} s"
            for device, node in self.here().items()
            if node in self.silent
        }

    def introducing(self) -> bool:
        """Tell whether a node that nobody knows anything of may yet say who it is."""
        known = {node for device, node in self.nodes.items() if device in self.statuses}
        return any(each.node not in known for each in self.questions.under_way().values())

    def why_not(self) -> dict[str, str]:
        """Return why the node of an enrolled device is not talked to, where it is known."""
        return {name: why for name, why in self.refused.values() if name}

    def look(self) -> None:
        """See who is online, ask those who have not said for a while who they are, and listen."""
        owners = self._owners()
        now = self.world.now()
        self._ask(node for node in sorted(owners) if now >= self.due.get(node, now))
        self._hear(owners)

    def _ask(self, nodes: Iterable[int]) -> None:
        asked = self.questions.under_way()
        self.questions.put(_EMPTY, {str(n): n for n in nodes if str(n) not in asked})

    def _hear(self, owners: Mapping[int, Device | None]) -> None:
        for question, reply in self.questions.heard(self.online):
            if question.node in owners:
                self._introduce(question.node, reply, owners[question.node])
        for question in self.questions.overdue():
            self._is_silent(question.node)

    def _is_silent(self, node: int) -> None:
        times = self.silent[node] = self.silent.get(node, 0) + 1
        pause_s = min(ASK_AGAIN_S * 2.0 ** min(times, 10), STATUS_EVERY_S)
        self.due[node] = self.world.now() + pause_s
        device = next((name for name, own in self.nodes.items() if own == node), "")
        values = {"node": str(node), "device": device, "times": times, "again_in_s": pause_s}
        self.world.say("node.silent", **values)

    def alive(self, device: str) -> None:
        """Note that a device was heard, whatever it said; one that was silent is asked at once."""
        node = self.nodes.get(device)
        if node is not None and self.silent.pop(node, 0):
            self.due.pop(node, None)

    def peek(self) -> None:
        """See which of the known nodes are online; for the moment before messages are pulled."""
        self.online = frozenset(self.asking.grid.get_node_ids())

    def refresh(self) -> None:
        """See who is online without asking anybody who is known; for the middle of a round."""
        owners = self._owners()
        unknown = [n for n, owner in owners.items() if owner is None and n not in self.due]
        self._ask(sorted(unknown))
        self._hear(owners)

    def _owners(self) -> dict[int, Device | None]:
        """Return the nodes that may be asked, with the device whose key each has, if any."""
        devices = self.devices = {each.name: each for each in self.registry.devices.all()}
        infos = {info.node_id: info for info in self.asking.grid.get_nodes()}
        self.online = frozenset(infos)
        gone = [node for node in (*self.refused, *self.due) if node not in infos]
        for node in gone:
            self.refused.pop(node, None)
            self.due.pop(node, None)  # one that comes back is asked at once
            self.silent.pop(node, None)
        self.questions.keep({str(node) for node in infos})
        for name in [n for n in self.nodes if _out(devices.get(n))]:
            del self.nodes[name]
        able = DeviceState.enrolled
        self.barred = {d: each.state.value for d, each in devices.items() if each.state is not able}
        by_key = {each.fingerprint: each for each in devices.values()}
        owners: dict[int, Device | None] = {}
        for node, info in infos.items():
            owner = by_key.get(fingerprint_of(bytes(info.public_key))) if info.public_key else None
            if info.public_key or self.world.keyed:
                if _out(owner):
                    self._refuse(node, "", _why_unknown(owner, info))
                    continue
                assert owner is not None
                if node not in self.refused:
                    self.nodes[owner.name] = node
            owners[node] = owner
        return owners

    def _introduce(self, node: int, reply: Message, owner: Device | None) -> None:
        self.due[node] = self.world.now() + ASK_AGAIN_S
        self.silent.pop(node, None)
        known = owner.name if owner else ""
        try:
            status = status_of(reply)
        except MismatchError as error:
            self._refuse(node, known, error.message)
            return
        device = owner or self.devices.get(status.device)
        if device is None or _out(device) or device.name != status.device:
            claimed = f"the node says that it is {status.device!r}, "
            said = "which is not enrolled" if owner is None else f"its key is {owner.name}'s"
            if owner is None and device is not None:
                said = f"which is {device.state.value}"
            self._refuse(node, known, claimed + said)
            return
        if owner is None and self.nodes.get(device.name, node) in self.online - {node}:
            self._refuse(node, "", f"a second node says that it is {device.name}")
            return
        self.refused.pop(node, None)
        self.nodes[device.name] = node
        self.heard(device.name, status)
        if status.usable:
            self.due[node] = self.world.now() + STATUS_EVERY_S

    def heard(self, device: str, status: DeviceStatus) -> None:
        """Keep what a device says of itself."""
        if device not in self.statuses:
            self.world.say("device.joined", device=device, serves_release=status.release)
        self.statuses[device] = status
        self.registry.devices.seen(status)

    def _refuse(self, node: int, device: str, why: str) -> None:
        found = (device, why[:SHOWN])
        if self.refused.get(node) != found:
            self.world.say("node.refused", node=str(node), device=device, why=found[1])
        if node in self.refused or len(self.refused) < LARGEST_REFUSED:
            self.refused[node] = found
        if device and self.nodes.get(device) == node:
            del self.nodes[device]


def _out(device: Device | None) -> bool:
    return device is None or device.state is DeviceState.revoked


def _why_unknown(owner: Device | None, info: NodeInfo) -> str:
    if owner is not None:
        return f"{owner.name} is revoked"
    return "its key is not enrolled" if info.public_key else "it has no key"


@lru_cache(maxsize=10_000)
def fingerprint_of(public_key: bytes) -> str:
    """Return the registry's fingerprint of a node's key.

    Args:
        public_key: PEM, as Flower keeps it.

    Returns:
        64 hexadecimal digits; empty for bytes that are no key.
    """
    try:
        key = serialization.load_pem_public_key(public_key)
        line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        return fingerprint(line.decode())
    except (ValueError, UnsupportedAlgorithm, InputError):
        return ""
