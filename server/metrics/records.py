"""What a look at a registry finds, in numbers: frozen records without any name of a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["BUCKETS_S", "Beat", "Judged", "Last", "Seen", "Snapshot", "Tally"]

BUCKETS_S = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
"""Upper bounds of the classes of a round's duration, seconds; a last one has no bound."""


@dataclass(frozen=True)
class Tally:
    """Sums over rounds.

    Args:
        through: Round and attempt of the last one that is in it.
        outcomes: Rounds by state.
        accepted: Updates.
        refused: Refusals by reason.
        traffic: Bytes by the names of ``server.messages.Traffic``.
        lasted: Rounds by class of duration, not cumulative; one more class than bounds.
        seconds: Of all rounds.
    """

    through: tuple[int, int] = (0, 0)
    outcomes: Mapping[str, int] = field(default_factory=dict)
    accepted: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    traffic: Mapping[str, int] = field(default_factory=dict)
    lasted: tuple[int, ...] = (0,) * (len(BUCKETS_S) + 1)
    seconds: float = 0.0

    def __add__(self, more: Tally) -> Tally:
        """Add what came later."""
        return Tally(
            max(self.through, more.through),
            _sum(self.outcomes, more.outcomes),
            self.accepted + more.accepted,
            _sum(self.refused, more.refused),
            _sum(self.traffic, more.traffic),
            tuple(a + b for a, b in zip(self.lasted, more.lasted, strict=True)),
            self.seconds + more.seconds,
        )


@dataclass(frozen=True)
class Seen:
    """Devices that have all of this in common, and how many they are.

    Args:
        state: What they may do.
        serves: Number of the release that they said they serve; -1 for none.
        pinned: Number of the release that they stay on; None to follow the fleet.
        heard_at_s: When they were heard of last, seconds since the epoch; None for never.
        count: How many.
    """

    state: str
    serves: int = -1
    pinned: int | None = None
    heard_at_s: float | None = None
    count: int = 1


@dataclass(frozen=True)
class Beat:
    """The service's last sign of life.

    Args:
        alive_at_s: When, seconds since the epoch.
        started_at_s: When it started.
        version: Of its software.
    """

    alive_at_s: float
    started_at_s: float
    version: str


@dataclass(frozen=True)
class Last:
    """The newest round that is closed.

    Args:
        seconds: From opening to close.
        released: Whether it ended in a release.
        absent: Devices that were not asked, by reason.
    """

    seconds: float
    released: bool
    absent: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """The newest evaluation.

    Args:
        release: Number of the release.
        counts: Confusion counts by device, ``(classes, classes)`` each; rows are the truth.
    """

    release: int
    counts: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class Snapshot:
    """What the registry says at one moment.

    Args:
        closed: Sums over all rounds that are closed.
        open: Sums over the round that is open; None without one.
        deadline_at_s: When the open round has to be closed, seconds since the epoch.
        last: The newest closed round; None before the first.
        devices: All that were ever enrolled, in groups.
        undelivered: Devices whose last delivery of a release failed.
        orders: Orders that are not finished, by state.
        beat: The service's last sign of life; None when there never was one.
        newest: Number of the newest release; None without any.
        current: Number of the fleet's release; None before a promotion.
        policy: Version of the policy that holds; 0 before the first.
        audit: Rows of the audit.
        judged: The newest evaluation; None without any.
        size: Bytes of the registry.
    """

    closed: Tally = field(default_factory=Tally)
    open: Tally | None = None
    deadline_at_s: float | None = None
    last: Last | None = None
    devices: tuple[Seen, ...] = ()
    undelivered: int = 0
    orders: Mapping[str, int] = field(default_factory=dict)
    beat: Beat | None = None
    newest: int | None = None
    current: int | None = None
    policy: int = 0
    audit: int = 0
    judged: Judged | None = None
    size: int = 0

    @property
    def tally(self) -> Tally:
        """Sums over all rounds, the open one included."""
        return self.closed if self.open is None else self.closed + self.open


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {*one, *other}}
