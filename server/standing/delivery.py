"""Releases on their way: every device that serves is brought to what the registry says it serves.

Promoting, pinning and rolling back are changes of the registry alone; here each device's report is
compared with what it should serve, its pin or else the fleet's release, and where they differ it
gets one core-sized message, whatever it missed. One that says that it lacks the release's base is
told again at once, with the base's file in the message.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fleet.adapt.digest import digest_arrays
from fleet.errors import FleetError
from fleet.federate.proof import with_proof
from fleet.federate.records import DeviceStatus
from fleet.federate.releases import Release
from fleet.federate.served import merge_release
from fleet.federate.wire import BASE_MISSING, LARGEST_BUNDLE_BYTES, Payload, with_base
from server.asking import Asking
from server.installed import bundle_of
from server.registry import Registry
from server.registry.observations import Delivery
from server.registry.records import Device, DeviceState
from server.rounds import about, report_of
from server.standing.nodes import Roster
from server.standing.planning import Bench
from server.standing.questions import Questions
from server.standing.world import World

__all__ = [
    "BASE_S",
    "FIRST_PAUSE_S",
    "LARGEST_BASES",
    "LONGEST_PAUSE_S",
    "Deliveries",
    "message_of",
    "pause_s",
]

TELL_S = 120.0
"""How long devices may take to serve a release."""
BASE_S = 600.0
"""How long one may take that is sent the base as well; a slow line needs minutes for it."""
LARGEST_BASES = 16
"""Devices that are sent a base at a time; it is a thousand times what a release takes."""
FIRST_PAUSE_S = 30.0
"""Pause before a device that did not take a release is told again; it doubles each time."""
LONGEST_PAUSE_S = 6 * 3600.0
LARGEST_KNOWN = 16
"""Releases of which the digest of the merged kernels is known."""


# Why a device that was sent the base does not serve the release, if not for want of the base.
_SENT = f"{BASE_MISSING}: though it was sent: "


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
    _bundle: tuple[str, bytes] = ("", b"")
    _questions: Questions = field(init=False)
    _with_base: Questions = field(init=False)

    def __post_init__(self) -> None:
        self._questions = Questions(self.asking, "query.release", TELL_S)
        self._with_base = Questions(self.asking, "query.release", BASE_S)

    def due(self) -> dict[int, list[str]]:
        """Return the devices that have to be told now, by the release that they should serve."""
        current = self.registry.releases.current()
        told = self.registry.observations.deliveries()
        here = self.roster.awake()
        # A device that still receives a base may have been told the next release meanwhile.
        asked = (self._questions.under_way(), self._with_base.under_way())
        under_way = {(name, each.about) for found in asked for name, each in found.items()}
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
            if (device.name, wanted) in under_way:
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
        if _lacks_base(told.reason) and not told.reason.startswith(_SENT):
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
        return self._hear(self._questions) + self._hear(self._with_base)

    def _hear(self, questions: Questions) -> int:
        heard = questions.heard(self.roster.online)
        for question, reply in heard:
            report = report_of(question.name, reply)
            if questions is self._with_base and isinstance(report, str) and _lacks_base(report):
                report = _SENT + report.partition(":")[2].strip()
            self._heard(question.name, question.about, report)
        overdue = questions.overdue()
        for question in overdue:
            why = f"no answer within {questions.limit_s:g} s"
            self._heard(question.name, question.about, why)
        return len(heard) + len(overdue)

    def _tell(self, number: int, devices: list[str]) -> int:
        release, row = self.registry.releases.load(number), self.registry.releases.get(number)
        here, told = self.roster.awake(), self.registry.observations.deliveries()
        payload = message_of(release, row.signature)
        plain, lacking = dict[str, int](), dict[str, int]()
        for device in devices:
            if device in here:
                last = told.get(device)
                lacks = last is not None and last.release == number and _lacks_base(last.reason)
                (lacking if lacks else plain)[device] = here[device]
        asked = self._questions.put(payload, plain, number)
        if asked:
            self.world.say("release.told", release=number, devices=sorted(asked))
        return len(asked) + (self._tell_with_base(payload, release, lacking) if lacking else 0)

    def _tell_with_base(self, payload: Payload, release: Release, to: dict[str, int]) -> int:
        """Tell devices a release with its base, so many at a time; the others stay due."""
        free = max(0, LARGEST_BASES - len(self._with_base.under_way()))
        chosen = dict(list(to.items())[:free])
        if not chosen:
            return 0
        try:
            whole = with_base(payload, self._content(release.base))
        except FleetError as error:
            reason = f"{error.code}: {error.message}; {error.hint}".rstrip("; ")
            for device in to:
                self._heard(device, release.number, reason)
            return 0
        (sample,) = self.asking.messages(
            whole, [next(iter(chosen.values()))], "query.release", "query.release", BASE_S
        )
        # Before they are sent, as with plans: a budget is kept by counting too much, if anything.
        self.registry.observations.spend(dict.fromkeys(chosen, self.world.weigh(sample)))
        asked = self._with_base.put(whole, chosen, release.number)
        values = {"base": release.base, "base_bytes": len(self._bundle[1])}
        self.world.say("release.told", release=release.number, devices=sorted(asked), **values)
        return len(asked)

    def _content(self, digest: str) -> bytes:
        """Return a base's file; the last one that goes into a message is kept."""
        if self._bundle[0] == digest:
            return self._bundle[1]
        content = bundle_of(self.registry.bases.content(digest))
        if len(content) <= LARGEST_BUNDLE_BYTES:
            self._bundle = digest, content
        return content

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
            at_once = _lacks_base(reason) and not reason.startswith(_SENT)
            again = 0.0 if at_once else pause_s(kept.tries)
            values = {"device": device, "release": number, "reason": reason, "tries": kept.tries}
            self.world.say("release.refused", **values, again_in_s=again)
        else:
            self.world.say("release.served", device=device, release=number)


def _lacks_base(reason: str) -> bool:
    """Tell whether a device said that it lacks a release's base, sent to it or not."""
    return reason.partition(":")[0] == BASE_MISSING


def message_of(release: Release, signature: str) -> Payload:
    """Return the message that brings a device to a release, or has it judge one.

    Args:
        release: The release.
        signature: Hexadecimal; empty for one that is not signed.
    """
    return with_proof(about(release), release, signature)
