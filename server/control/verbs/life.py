"""Whether somebody takes orders: what the registry and the server's folder say of the service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fleet.supervise.record import standing

if TYPE_CHECKING:
    from server.control.verbs.fleet import Fleet
    from server.registry.observations import Heartbeat

__all__ = ["QUIET_S", "UP", "Life", "life", "life_of"]

QUIET_S = 60.0
"""Longest silence of a service that lives, as for its metrics; it says so every five seconds."""
UP = "fleet server up"
STATUS = "fleet server status"
UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))
UNITS_FROM = 2
"""A duration is told in the largest unit of which it has as many."""


@dataclass(frozen=True)
class Life:
    """How the standing service is.

    Args:
        told: In a few words: ``alive``, ``ended 39 s ago``.
        next: What brings it back; empty while it lives.
        ran: Whether it ever did.
        ended: Whether its supervisor said that it ended, and nothing was heard since.
    """

    told: str
    next: str = ""
    ran: bool = True
    ended: bool = False

    @property
    def alive(self) -> bool:
        """Whether it takes orders and tells devices their releases."""
        return not self.next

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"service": self.told, "service_ran": self.ran, "next": self.next}


def life(fleet: Fleet) -> Life:
    """Return how the standing service of a fleet is."""
    run = None if fleet.backups is None else standing(fleet.backups.parent)
    return life_of(fleet.registry.observations.heartbeat(), run, fleet.clock())


def life_of(beat: Heartbeat | None, run: Mapping[str, Any] | None, now: float) -> Life:
    """Return how the standing service is; pure.

    >>> life_of(None, None, 0.0)
    Life(told='has not run yet', next='fleet server up', ran=False, ended=False)

    Args:
        beat: Its last sign of life; None where there never was one.
        run: What :func:`fleet.supervise.record.standing` says of ``fleet server up`` in this
            folder; None where it never ran here, as with a service on another machine.
        now: Seconds since the epoch.
    """
    step = STATUS if run is not None and run["running"] else UP
    ended_s = _ended_s(run)
    if ended_s is not None and (beat is None or beat.alive_at_s <= ended_s):
        return Life(f"ended {_span(now - ended_s)} ago", step, beat is not None, ended=True)
    if beat is None:
        return Life("has not run yet", step, ran=False)
    if now - beat.alive_at_s > QUIET_S:
        return Life(f"was last heard of {_span(now - beat.alive_at_s)} ago", step)
    return Life("alive")


def _ended_s(run: Mapping[str, Any] | None) -> float | None:
    if run is None or run["ended"] is None:
        return None
    return datetime.fromisoformat(run["ended"]).timestamp()


def _span(seconds: float) -> str:
    for unit_s, name in UNITS:
        if seconds >= UNITS_FROM * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{max(0.0, seconds):.0f} s"
