"""The field: a trace drawn for the devices of one run.

What a device is and does follows from the run's seed and its partition id, so devices cost nothing
until they are asked for; what is kept is a bounded number of spells, to be asked again soon.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from simulations.traces.alternating import Spell, uniform
from simulations.traces.trace import DeviceClass, Trace

__all__ = ["Fate", "Field", "Journey"]

# About 200 bytes each. A look at the fleet asks each device whether it is online.
LARGEST_SPELLS_HELD = 16_384
# Spells that a search for the next one online looks at; the shortest lasts a second.
LARGEST_SEARCH = 1_000_000


@dataclass(frozen=True)
class Fate:
    """What becomes of a message.

    Args:
        lost: The message or its answer never arrives.
        doubled: Its answer arrives twice.
    """

    lost: bool
    doubled: bool


@dataclass(frozen=True)
class Journey:
    """A message's way to a device and the work there.

    Args:
        pushed_at: Simulated seconds.
        down_bytes: What it weighs on the wire.
        windows: Windows to train (passes counted) or to judge.
        training: Whether they are trained.
        until: The message expires then.
    """

    pushed_at: float
    down_bytes: int
    windows: int
    training: bool
    until: float


class Field:
    """The devices of a run in the field.

    Args:
        trace: The trace.
        seed: Root seed.
    """

    def __init__(self, trace: Trace, seed: int) -> None:
        self.trace = trace
        self._seed = seed
        self._spells: dict[int, Spell] = {}

    def class_of(self, partition: int) -> DeviceClass:
        """Return the class of a device."""
        left = uniform(self._seed, 0, _name(partition), "trace/class")
        left *= sum(each.share for each in self.trace.device)
        for each in self.trace.device:
            left -= each.share
            if left < 0:
                return each
        return self.trace.device[-1]

    def spell(self, partition: int, at: float) -> Spell:
        """Return a stretch of time around ``at`` in which a device stays online or offline."""
        known = self._spells.pop(partition, None)
        if known is None or not known.since <= at < known.until:
            known = self._find(partition, at)
        self._spells[partition] = known
        if len(self._spells) > LARGEST_SPELLS_HELD:
            del self._spells[next(iter(self._spells))]
        return known

    def _find(self, partition: int, at: float) -> Spell:
        name = _name(partition)
        found = [each.spell(self._seed, name, at) for each in self.trace.availability]
        away = [each for each in found if not each.online]
        if not away:
            return Spell(True, max(each.since for each in found), min(s.until for s in found))
        return Spell(False, min(each.since for each in away), max(each.until for each in away))

    def online(self, partition: int, at: float) -> bool:
        """Tell whether a device is online."""
        return self.spell(partition, at).online

    def offline_by(self, clock: Callable[[], float]) -> Callable[[int], bool]:
        """Return what tells whether a device is offline by a clock."""
        return lambda partition: not self.online(partition, clock())

    def online_from(self, partition: int, at: float, until: float) -> float:
        """Return when a device is online first, not before ``at``; ``inf`` if not by ``until``."""
        for _ in range(LARGEST_SEARCH):
            if at >= until:
                break
            found = self.spell(partition, at)
            if found.online:
                return at
            at = found.until
        return math.inf

    def answers_at(self, partition: int, journey: Journey) -> float:
        """Return when a device's answer sets out, ``inf`` when that is too late.

        The link is asked twice: when the message sets out and when the answer does. What is on its
        way is not cut off, and work goes on while a device is offline.
        """
        kind = self.class_of(partition)
        speed = kind.train_windows_per_s if journey.training else kind.judge_windows_per_s
        reached = self.online_from(partition, journey.pushed_at, journey.until)
        received = reached + kind.latency_s + journey.down_bytes / kind.down_bytes_per_s
        return self.online_from(partition, received + journey.windows / speed, journey.until)

    def travels(self, partition: int, up_bytes: int) -> float:
        """Return the seconds that an answer is on its way."""
        kind = self.class_of(partition)
        return kind.latency_s + up_bytes / kind.up_bytes_per_s

    def fate(self, partition: int, message: str) -> Fate:
        """Return what becomes of a message.

        Args:
            partition: Whom it is for.
            message: What tells it from every other message to that device.
        """
        name, faults = _name(partition), self.trace.faults
        down, up, doubled = (
            uniform(self._seed, 0, name, f"trace/{what}/{message}")
            for what in ("down", "up", "doubled")
        )
        return Fate(down < faults.lost_down or up < faults.lost_up, doubled < faults.doubled)


def _name(partition: int) -> str:
    return f"partition-{partition}"
