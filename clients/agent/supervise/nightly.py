"""The SuperNode's nightly restart: once a night, whatever the clock does."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta

from fleet.supervise.ward import World

__all__ = ["JITTER", "LEAST_GAP_S", "NightlyWear", "Nights", "night_of", "nights_of", "observe"]

# A fleet that restarts in one second is a load on its server.
JITTER = timedelta(minutes=45)
# Two recycles are at least this far apart on the monotonic clock. A night that a jump of the wall
# clock brings twice is thereby recycled once; a true night is never so short.
LEAST_GAP_S = 12 * 3600.0


@dataclass(frozen=True)
class Nights:
    """Which nights are over.

    Args:
        at: Local time of day of the recycle, the device's jitter not yet added.
        jitter: The device's own, below :data:`JITTER`.
        last: The newest night that has begun; ``None`` before the first look at the clock.
        recycled_s: Monotonic time of the last recycle; ``None``: none yet.
    """

    at: time
    jitter: timedelta
    last: date | None = None
    recycled_s: float | None = None


def nights_of(at: str, name: str) -> Nights | None:
    """Return the nights of a device; ``None`` for one that is never recycled.

    Args:
        at: ``HH:MM``, or ``""`` for never.
        name: The device's name, which seeds its jitter.
    """
    if not at:
        return None
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return Nights(time.fromisoformat(at), JITTER * (seed / 2**64))


def night_of(nights: Nights, now: datetime) -> date:
    """Return the newest night that has begun at ``now``, a local time without a zone."""
    today = now.date()
    begun = datetime.combine(today, nights.at) + nights.jitter <= now
    return today if begun else today - timedelta(days=1)


def observe(nights: Nights, now: datetime, now_s: float, is_up: bool) -> tuple[Nights, bool]:
    """Look at the clocks; return what is known then, and whether to recycle now; pure.

    A night in which the child is not up counts as done, since it starts afresh anyhow.

    Args:
        nights: What is known.
        now: Local time, which may jump; without a zone.
        now_s: Monotonic time, seconds.
        is_up: Whether there is something to recycle.
    """
    newest = night_of(nights, now)
    # A clock that was set back is believed: nights that it has not seen may come again.
    if nights.last is None or newest <= nights.last:
        return replace(nights, last=newest), False
    rested = nights.recycled_s is None or now_s - nights.recycled_s >= LEAST_GAP_S
    if not (is_up and rested):
        return replace(nights, last=newest), False
    return replace(nights, last=newest, recycled_s=now_s), True


class NightlyWear:
    """Tells when a night has passed.

    Args:
        nights: Those of the device.
    """

    def __init__(self, nights: Nights) -> None:
        self._nights = nights

    def observe(self, world: World, is_up: bool) -> str:
        """Return why the SuperNode is recycled now; ``""``: it is not."""
        local = world.now().replace(tzinfo=None)
        self._nights, due = observe(self._nights, local, world.clock(), is_up)
        return "a night has passed" if due else ""
