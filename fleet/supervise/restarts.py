"""When a process starts again: one child's course as a pure state machine.

    WAITING ──Started──▶ UP ──Ended──▶ WAITING   after a delay that grows with each quick end
                         UP ──Asked──▶ STOPPING ──Ended──▶ WAITING   at once: that was no failure

Time and chance are arguments, so every history can be replayed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

__all__ = [
    "Asked",
    "Backoff",
    "Course",
    "Ended",
    "Event",
    "Phase",
    "Started",
    "delay_s",
    "step",
]

REASONS_KEPT = 5
# Beyond this the doubled delay is above every sensible longest one, and a float stays finite.
MOST_DOUBLINGS = 60


class Phase(str, Enum):
    """Where a child is in its course."""

    WAITING = "waiting"
    UP = "up"
    STOPPING = "stopping"


@dataclass(frozen=True)
class Backoff:
    """How long a child that ended waits for its next start; exponential with full jitter.

    Args:
        least_s: No delay after a crash is shorter, seconds.
        first_s: Longest delay after the first crash; doubled by each that follows.
        longest_s: Longest delay of all.
        steady_s: A child that was up this long has recovered: the next crash counts as the first.

    Raises:
        ValueError: Unless 0 < least_s <= first_s <= longest_s and steady_s >= 0.
    """

    least_s: float
    first_s: float
    longest_s: float
    steady_s: float

    def __post_init__(self) -> None:
        if not 0 < self.least_s <= self.first_s <= self.longest_s or self.steady_s < 0:
            raise ValueError(f"0 < least <= first <= longest and steady >= 0 do not hold: {self}")


@dataclass(frozen=True)
class Course:
    """What is known of one child.

    Args:
        phase: See :class:`Phase`.
        since_s: When the phase began; the clock is monotonic, seconds.
        due_s: While waiting: the time before which it must not start.
        starts: Starts so far; ``restarts`` of them followed a crash, ``recycles`` a request.
        failures: Ends in a row, each before the child was steady.
        restarts: Crashes so far.
        recycles: Ends that were asked for.
        reasons: Of its latest crashes, newest last.
    """

    phase: Phase = Phase.WAITING
    since_s: float = 0.0
    due_s: float = 0.0
    starts: int = 0
    failures: int = 0
    restarts: int = 0
    recycles: int = 0
    reasons: tuple[str, ...] = ()

    def may_start(self, now_s: float) -> bool:
        """Tell whether the child waits, and has waited long enough."""
        return self.phase is Phase.WAITING and now_s >= self.due_s


@dataclass(frozen=True)
class Started:
    """The child was started."""


@dataclass(frozen=True)
class Asked:
    """The child shall end.

    Args:
        again: Whether it is to be started afresh, which is a recycle.
    """

    again: bool = True


@dataclass(frozen=True)
class Ended:
    """The child ended, or could not be started.

    Args:
        reason: For people, e.g. ``exit code 305``.
        draw: Chance, uniform in [0, 1).
    """

    reason: str
    draw: float


Event = Started | Asked | Ended


def step(course: Course, event: Event, now_s: float, backoff: Backoff) -> Course:
    """Return the course after an event; pure.

    Raises:
        ValueError: For an event that cannot happen in this phase, e.g. a start that is not due.
    """
    phase = course.phase
    if isinstance(event, Started) and course.may_start(now_s):
        return replace(course, phase=Phase.UP, since_s=now_s, starts=course.starts + 1)
    if isinstance(event, Asked) and phase is Phase.UP:
        recycles = course.recycles + event.again
        return replace(course, phase=Phase.STOPPING, since_s=now_s, recycles=recycles)
    if isinstance(event, Ended) and phase is Phase.STOPPING:
        return replace(course, phase=Phase.WAITING, since_s=now_s, due_s=now_s, failures=0)
    # A start that fails is an end as well, so that it is not tried again at once.
    if isinstance(event, Ended) and (phase is Phase.UP or course.may_start(now_s)):
        return _crashed(course, event, now_s, backoff)
    raise ValueError(f"{type(event).__name__} cannot happen at {now_s:g} s in {course}")


def delay_s(failures: int, draw: float, backoff: Backoff) -> float:
    """Return the delay after ``failures`` >= 1 crashes in a row, seconds.

    It is uniform between ``least_s`` and a limit that doubles up to ``longest_s``: devices that
    lost the same server must not come back in step.
    """
    doublings = min(failures - 1, MOST_DOUBLINGS)
    limit = min(backoff.longest_s, backoff.first_s * 2.0**doublings)
    return backoff.least_s + draw * (limit - backoff.least_s)


def _crashed(course: Course, event: Ended, now_s: float, backoff: Backoff) -> Course:
    steady = course.phase is Phase.UP and now_s - course.since_s >= backoff.steady_s
    failures = 1 if steady else course.failures + 1
    return replace(
        course,
        phase=Phase.WAITING,
        since_s=now_s,
        due_s=now_s + delay_s(failures, event.draw, backoff),
        failures=failures,
        restarts=course.restarts + 1,
        reasons=(*course.reasons, event.reason)[-REASONS_KEPT:],
    )
