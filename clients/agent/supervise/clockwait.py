"""May the SuperNode start, as far as the clock is concerned?

Flower signs requests with the device's time, and the server takes signatures that are at most 5 s
ahead; a board without a battery-backed clock starts in 1970 until NTP has set it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

from clients.agent.doctor.clock import is_plausible
from fleet.supervise.ward import Sight, World

__all__ = ["ClockGate", "Verdict", "judge_clock"]

EVERY_S = 5.0


@dataclass(frozen=True)
class Verdict:
    """What the clock allows.

    Args:
        may_start: Whether the SuperNode may start now.
        doubt: What is wrong with the clock, for people; ``""``: nothing.
    """

    may_start: bool
    doubt: str = ""


def judge_clock(now: datetime, kept: bool | None, waited_s: float, limit_s: float) -> Verdict:
    """Judge the clock; pure.

    Args:
        now: What it says, in UTC.
        kept: Whether NTP keeps it; ``None`` when the system does not tell.
        waited_s: For how long it was waited for already.
        limit_s: Longest wait. After it the SuperNode starts anyway: a refusal is tried again,
            while a device that waits for ever is lost.
    """
    if not is_plausible(now):
        doubt = f"the clock says {now:%Y-%m-%d %H:%M} UTC, it was never set"
    elif kept is False:
        doubt = "NTP has not set the clock"
    else:
        return Verdict(True)
    return Verdict(waited_s >= limit_s, doubt)


class ClockGate:
    """Holds the SuperNode back until the clock is set.

    Args:
        limit_s: Longest wait, seconds.
        kept_by_ntp: Whether NTP keeps the wall clock; ``None``: nobody tells.
    """

    def __init__(self, limit_s: float, kept_by_ntp: Callable[[], bool | None]) -> None:
        self._limit_s, self._kept_by_ntp = limit_s, kept_by_ntp
        self._since_s: float | None = None
        self._doubt = ""

    def look(self, world: World) -> Sight:
        """Judge the clock as it is now."""
        now_s, limit_s = world.clock(), self._limit_s
        since_s = self._since_s = now_s if self._since_s is None else self._since_s
        waited_s = now_s - since_s
        utc = world.now().astimezone(timezone.utc)
        verdict = judge_clock(utc, self._kept_by_ntp(), waited_s, limit_s)
        event = None
        if verdict.may_start and verdict.doubt:
            event = ("clock.given-up", f"starts after {limit_s:g} s although {verdict.doubt}")
        elif verdict.may_start and self._doubt:
            event = ("clock.set", "the clock is set now")
        elif verdict.doubt and not self._doubt:
            event = ("clock.waits", f"waits for {limit_s:g} s at most, since {verdict.doubt}")
        self._doubt = verdict.doubt
        return Sight(verdict.may_start, event, min(EVERY_S, max(0.0, limit_s - waited_s)))
