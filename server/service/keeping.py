"""When the standing service is started again: what is seen of it, and what follows from that.

    no run ──► start ──► begins ──► lives ──┬─ finished ──────────────► start, after a delay
                            │               └─ its process is gone,
                            └─ never ──────────── or silent ──► stop ──► finished

Two services must not run beside each other, so one is started only when Flower says that the one
before has finished and its process has gone or had :data:`LEAVE_S` to go.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["BEGIN_S", "LEAVE_S", "SILENT_S", "Do", "Seen", "judged"]

BEGIN_S = 180.0
"""Longest time from the start of a run to the first sign of life of its service."""
SILENT_S = 180.0
"""Longest silence of a service whose process runs; it says every five seconds that it lives."""
LEAVE_S = 30.0
"""How long the process of a finished run may take to go."""


class Do(str, Enum):
    """What follows."""

    leave = "leave"
    start = "start"
    stop = "stop"


@dataclass(frozen=True)
class Seen:
    """What is seen of the standing service.

    Args:
        state: Of its run, as :meth:`server.flower_control.Control.run_state` says; empty: none was
            started, or Flower knows it no more.
        age_s: Seconds since the run was started.
        silent_s: Seconds since its service said that it lives; ``None``: it never did.
        alive: Whether the process that said so still runs.
        over_s: Seconds since the run was first seen finished.
    """

    state: str = ""
    age_s: float = 0.0
    silent_s: float | None = None
    alive: bool = False
    over_s: float = 0.0


def judged(seen: Seen) -> tuple[Do, str]:
    """Return what to do, and why.

    >>> judged(Seen(state="running", age_s=5.0))
    (<Do.leave: 'leave'>, '')
    >>> judged(Seen(state="finished:failed"))[1]
    'its run ended: failed'
    """
    if not seen.state:
        return Do.start, "it does not run"
    if seen.state.startswith("finished"):
        if seen.alive and seen.over_s < LEAVE_S:
            return Do.leave, ""
        return Do.start, f"its run ended: {seen.state.partition(':')[2] or 'completed'}"
    if seen.silent_s is None:
        if seen.age_s <= BEGIN_S:
            return Do.leave, ""
        return Do.stop, f"it did not begin within {BEGIN_S:g} s"
    if not seen.alive:
        return Do.stop, "its process is gone"
    if seen.silent_s > SILENT_S:
        return Do.stop, f"it has been silent for {seen.silent_s:.0f} s"
    return Do.leave, ""
