"""In which rounds a device takes part that does so only when something has changed.

An alarm, and joining, are good for a number of trainings. Counted are trainings that ended in an
update, not rounds or days: a round that the device was too hot for teaches the fleet nothing of
what has changed.
"""

from __future__ import annotations

from typing import Any

from clients.agent.drifting.kept import VERSION
from clients.agent.drifting.settings import Drift
from clients.agent.store import Store

__all__ = ["changed_s", "renew", "rounds_left", "spend"]

# Not under LEARNED: a count of trainings and the time of the last change, of whomever.
SHARE = "drift.participation"


def rounds_left(store: Store, drift: Drift) -> int | None:
    """Return in how many more trainings the device takes part; None when it always does."""
    if drift.participate == "always":
        return None
    return max(0, drift.rounds - int(_share(store).get("used", 0)))


def changed_s(store: Store) -> float | None:
    """Return when something last changed, seconds since the epoch: an alarm, or joining."""
    found = _share(store).get("since_s")
    return None if found is None else float(found)


def renew(store: Store, now_s: float) -> None:
    """Begin anew: something has changed."""
    _put(store, 0, now_s)


def spend(store: Store, drift: Drift, now_s: float) -> None:
    """Count a training, in the transaction that keeps its update."""
    if drift.participate == "drift":
        found = _share(store)
        _put(store, int(found.get("used", 0)) + 1, float(found.get("since_s", now_s)))


def _put(store: Store, used: int, since_s: float) -> None:
    store.state.put(SHARE, {"version": VERSION, "used": used, "since_s": since_s})


def _share(store: Store) -> dict[str, Any]:
    found = store.state.get(SHARE)
    return found if isinstance(found, dict) and found.get("version") == VERSION else {}
