"""Checks of the clock: set at all, kept by NTP.

Flower signs requests with the device's time and the server takes signatures that are at most 5 s
ahead and 305 s behind, so a device without a battery-backed clock is refused until NTP has set it.
The skew against the server is a finding of the check ``server``, which asks it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

from clients.agent.doctor.finding import Finding, Subject, failed, fine, warn
from clients.agent.power.commands import LineOf, first_line

__all__ = [
    "AHEAD_S",
    "BEHIND_S",
    "TIMEDATECTL_LIMIT_S",
    "check_clock",
    "is_plausible",
    "kept_by_ntp",
    "skew_finding",
]

# The project is younger than this year, so an earlier date is a clock that was never set.
FIRST_YEAR = 2026
LAST_YEAR = 2100
TIMEDATECTL_LIMIT_S = 5.0
TIMEDATECTL = ("timedatectl", "show", "--property=NTPSynchronized", "--value")
# The window of the server, less the second by which a Date header is coarse.
AHEAD_S = 4.0
BEHIND_S = 304.0
NOTICED_S = 2.0
FIX = "Turn NTP on: sudo timedatectl set-ntp true; wait for: timedatectl show -p NTPSynchronized"


def _now() -> datetime:
    return datetime.now(timezone.utc)


def is_plausible(now: datetime) -> bool:
    """Tell whether a clock that says ``now`` can have been set."""
    return FIRST_YEAR <= now.year <= LAST_YEAR


def kept_by_ntp(limit_s: float, line_of: LineOf = first_line) -> bool | None:
    """Ask systemd whether NTP keeps the clock; ``None`` when it does not tell in ``limit_s``."""
    return {"yes": True, "no": False}.get(line_of(TIMEDATECTL, limit_s) or "")


def check_clock(
    subject: Subject, now: Callable[[], datetime] = _now, line_of: LineOf = first_line
) -> Finding:
    """The year is plausible, and NTP keeps the clock where the system can tell."""
    time = now()
    if not is_plausible(time):
        return failed(f"the clock says {time:%Y-%m-%d %H:%M} UTC, it was never set", FIX)
    kept = kept_by_ntp(TIMEDATECTL_LIMIT_S, line_of)
    shown = f"{time:%Y-%m-%d %H:%M:%S} UTC"
    if kept:
        return fine(f"{shown}, kept by NTP")
    if kept is False:
        return warn(f"{shown}, but NTP has not set the clock", FIX)
    return fine(f"{shown}; the system does not tell whether NTP keeps it")


def skew_finding(skew_s: float) -> Finding | None:
    """Judge the device's time less the server's; ``None`` when it is too small to matter.

    Args:
        skew_s: Positive when the device is ahead, seconds.
    """
    if skew_s > AHEAD_S or skew_s < -BEHIND_S:
        return failed(
            f"the clock is {abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'} the"
            " server's; it takes 5 s ahead and 305 s behind",
            FIX,
        )
    if abs(skew_s) > NOTICED_S:
        return warn(f"the clock differs from the server's by {skew_s:+.0f} s", FIX)
    return None
