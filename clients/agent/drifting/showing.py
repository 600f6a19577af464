"""What people, the owner's status and the fleet's server are told of drift; needs no torch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from clients.agent.drifting.kept import (
    ALARMED,
    Memory,
    alarms_of,
    label_cursor_of,
    memory_of,
    reference_of,
    window_cursor_of,
)
from clients.agent.drifting.participation import changed_s, rounds_left
from clients.agent.drifting.settings import Drift
from clients.agent.store import Store

__all__ = ["line_of", "shown", "tally"]


def tally(store: Store, now_s: float) -> tuple[int, int]:
    """Return how many alarms there ever were, and the age in seconds of the last; -1 for none.

    Who was forgotten takes the times of all alarms along, not their number.
    """
    counted = store.counters.all().items()
    count = sum(number for name, number in counted if name.startswith(ALARMED))
    alarms = alarms_of(store)
    return count, int(max(0.0, now_s - alarms[-1].at_s)) if alarms else -1


def shown(store: Store, drift: Drift, now_s: float) -> dict[str, Any]:
    """Return all there is to say, as JSON holds it."""
    count, age_s = tally(store, now_s)
    return {
        "watch": drift.watch,
        "participate": drift.participate,
        "rounds_left": rounds_left(store, drift),
        "changed_s": changed_s(store),
        "signals": [_signal(store, drift, name) for name in drift.signals],
        "alarms_ever": count,
        "last_age_s": None if age_s < 0 else age_s,
        "alarms": [asdict(alarm) for alarm in alarms_of(store)],
    }


def line_of(found: dict[str, Any]) -> str:
    """Say it in a line, for the device's status."""
    if not found["watch"]:
        return "not watched"
    last = found["last_age_s"]
    ago = "" if last is None else f", the last {last / 3600:.1f} h ago"
    line = f"{found['alarms_ever']} alarm(s){ago}"
    if found["rounds_left"] is not None:
        line += f"; takes part in {found['rounds_left']} more round(s) without another"
    return line


def _signal(store: Store, drift: Drift, name: str) -> dict[str, Any]:
    memory = memory_of(store, name)
    cursor = window_cursor_of(store) if name == "label-free" else label_cursor_of(store).window
    return {
        "signal": name,
        "phase": _phase(store, drift, name, memory),
        "windows": memory.seen if memory else 0,
        "last_window": cursor,
    }


def _phase(store: Store, drift: Drift, name: str, memory: Memory | None) -> str:
    if name == "label-free" and reference_of(store) is None:
        return "learning-reference"
    warm_up = drift.warm_up if name == "label-free" else drift.loss_warm_up
    since = memory.state.get("seen", 0) if memory else 0
    return "watching" if since > warm_up else "warming-up"
