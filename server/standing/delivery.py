"""Releases on their way: every device that serves is brought to what the registry says it serves.

Promoting, pinning and rolling back are changes of the registry alone; here each device's report is
compared with what it should serve, its pin or else the fleet's release, and where they differ it
gets one core-sized message, whatever it missed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fleet.adapt.digest import digest_arrays
from fleet.errors import FleetError
from fleet.federate.proof import with_proof
from fleet.federate.records import DeviceStatus
from fleet.federate.releases import Release
from fleet.federate.served import merge_release
from fleet.federate.wire import Payload
from server.asking import Asking
from server.registry import Registry
from server.registry.observations import Delivery
from server.registry.records import Device, DeviceState
from server.rounds import about, report_of
from server.standing.nodes import Roster
from server.standing.planning import Bench
from server.standing.questions import Questions
from server.standing.world import World

__all__ = ["FIRST_PAUSE_S", "LONGEST_PAUSE_S", "Deliveries", "message_of", "pause_s"]

TELL_S = 120.0
"""How long devices may take to serve a release."""
FIRST_PAUSE_S = 30.0
"""Pause before a device that did not take a release is told again; it doubles each time."""
LONGEST_PAUSE_S = 6 * 3600.0
LARGEST_KNOWN = 16
"""Releases of which the digest of the merged kernels is known."""


def pause_s(tries: int) -> float:
    """Return how long a device is left alone after so many tries.

    >>> [pause_s(tries) for tries in (1, 2, 40)]
    [30.0, 60.0, 21600.0]
    """
    return min(FIRST_PAUSE_S * 2.0 ** min(tries - 1, 16), LONGEST_PAUSE_S)


@dataclass
class Deliveries:
    """Brings devices to their releases.

    Args:
        asking: Carries messages.
        roster: Who is behind which node.
        registry: What each should serve, and what came of telling it.
        bench: Bases, to know what a release's kernels are.
        world: Clock and words.
    """

    asking: Asking
    roster: Roster
    registry: Registry
    bench: Bench
    world: World
    _kernels: dict[int, str] = field(default_factory=dict)
    _questions: Questions = field(init=False)

    def __post_init__(self) -> None:
        self._questions = Questions(self.asking, "query.release", TELL_S)

    def due(self) -> dict[int, list[str]]:
        """Return the devices that have to be told now, by the release that they should serve."""
        current = self.registry.releases.current()
        told = self.registry.observations.deliveries()
        here, under_way = self.roster.awake(), self._questions.under_way()
        found: dict[int, list[str]] = {}
        for device in self.roster.devices.values():
            status = self.roster.statuses.get(device.name)
            if device.name not in here or status is None or not status.serves:
                continue
            wanted = device.pinned
            if wanted is None and current is not None:
                wanted = current.number
            if wanted is None or device.state is DeviceState.revoked:
                continue
            if device.name in under_way and under_way[device.name].about == wanted:
                continue
            if self._is_due(device, status, wanted, told.get(device.name)):
                found.setdefault(wanted, []).append(device.name)
        return found

    def _is_due(
        self, device: Device, status: DeviceStatus, wanted: int, told: Delivery | None
    ) -> bool:
        if status.release == wanted and self._serves(status, wanted):
            return False
        if told is None or told.release != wanted:
            return True
        return self.world.clock() - told.told_at_s >= pause_s(told.tries)

    def _serves(self, status: DeviceStatus, wanted: int) -> bool:
        kernels = self.kernels(wanted)
        return not kernels or status.serves == kernels

    def kernels(self, number: int) -> str:
        """Return the digest of a release's merged kernels; empty where its base cannot be read."""
        if number not in self._kernels:
            try:
                release = self.registry.releases.load(number)
                found = digest_arrays(merge_release(self.bench.base(release.base), release))
            except FleetError as error:
                self.world.say("release.unmerged", release=number, why=error.message)
                found = ""
            while len(self._kernels) >= LARGEST_KNOWN:
                del self._kernels[next(iter(self._kernels))]
            self._kernels[number] = found
        return self._kernels[number]

    def tell(self) -> int:
        """Tell the devices that are due, and take what others report.

        Returns:
            How many were told or had something to say; nobody is waited for.
        """
        told = [self._tell(number, devices) for number, devices in sorted(self.due().items())]
        return sum(told) + self.hear()

    def hear(self) -> int:
        """Take the reports that came, and note who gave none in time; return how many."""
        heard = self._questions.heard(self.roster.online)
        for question, reply in heard:
            report = report_of(question.name, reply)
            self._heard(question.name, question.about, report)
        overdue = self._questions.overdue()
        for question in overdue:
            self._heard(question.name, question.about, f"no answer within {TELL_S:g} s")
        return len(heard) + len(overdue)

    def _tell(self, number: int, devices: list[str]) -> int:
        release, row = self.registry.releases.load(number), self.registry.releases.get(number)
        here = self.roster.awake()
        to = {device: here[device] for device in devices if device in here}
        payload = message_of(release, row.signature)
        asked = self._questions.put(payload, to, number)
        if asked:
            self.world.say("release.told", release=number, devices=sorted(asked))
        return len(asked)

    def _heard(self, device: str, number: int, report: DeviceStatus | str) -> None:
        reason = report if isinstance(report, str) else ""
        if isinstance(report, DeviceStatus):
            self.roster.heard(device, report)
            if report.release != number:
                reason = f"serves release {report.release}"
            elif not self._serves(report, number):
                reason = f"serves kernels {report.serves[:12]}…, not {self.kernels(number)[:12]}…"
        kept = self.registry.observations.told(device, number, reason)
        if reason:
            again = pause_s(kept.tries)
            values = {"device": device, "release": number, "reason": reason, "tries": kept.tries}
            self.world.say("release.refused", **values, again_in_s=again)
        else:
            self.world.say("release.served", device=device, release=number)


def message_of(release: Release, signature: str) -> Payload:
    """Return the message that brings a device to a release, or has it judge one.

    Args:
        release: The release.
        signature: Hexadecimal; empty for one that is not signed.
    """
    return with_proof(about(release), release, signature)
