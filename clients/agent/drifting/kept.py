"""What of watching is in the device's store: cursors, detectors, the reference and alarms.

All are values of ``store.state``, plain JSON with a version, each bounded. What was made of
people's windows is under :data:`~clients.agent.store.forget.LEARNED`: it goes when anybody is
forgotten. The cursors stay then, so that nothing is watched twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clients.agent.store import Store
from clients.agent.store.following import LabelCursor
from clients.agent.store.forget import FORGETS, LEARNED

__all__ = [
    "ALARMED",
    "MOST_ALARMS",
    "VERSION",
    "Alarm",
    "Memory",
    "alarms_of",
    "forgets_of",
    "label_cursor_of",
    "memory_of",
    "note_alarms",
    "put_cursor",
    "put_memory",
    "reference_of",
    "window_cursor_of",
]

VERSION = 1
"""Of every value here; one of another version is as good as none."""
MOST_ALARMS = 64
"""The newest are kept."""
ALARMED = "drift.alarms."
"""Prefix of the store's counters of alarms, by their signals."""

ALARMS = LEARNED + "drift.alarms"
REFERENCE = LEARNED + "drift.reference"
_CURSOR = "drift.cursor."
_DETECTOR = LEARNED + "drift.detector."


@dataclass(frozen=True)
class Alarm:
    """A place in the stream at which a detector saw a change.

    Args:
        signal: What was watched.
        at_s: When the device noticed it, seconds since the epoch.
        window_s: Start of the window at which it was seen.
    """

    signal: str
    at_s: float
    window_s: float


@dataclass(frozen=True)
class Memory:
    """A detector between two looks.

    Args:
        base: Digest of the base whose signals it saw.
        seen: Windows that it has seen since it was made.
        state: See :meth:`fleet.continual.drift.Detector.state`.
    """

    base: str
    seen: int
    state: dict[str, Any]


def memory_of(store: Store, signal: str) -> Memory | None:
    """Return a signal's detector; None before the first look, and for another version's."""
    found = _read(store, _DETECTOR + signal)
    try:
        return Memory(str(found["base"]), int(found["seen"]), dict(found["state"]))
    except (KeyError, TypeError, ValueError):
        return None


def put_memory(store: Store, signal: str, memory: Memory) -> None:
    """Keep a signal's detector; in the transaction that moves its cursor."""
    store.state.put(_DETECTOR + signal, {"version": VERSION, **asdict(memory)})


def window_cursor_of(store: Store) -> int:
    """Return the id of the last window that label-free signals were taken of; 0 for none."""
    found = _read(store, _CURSOR + "label-free").get("window", 0)
    return found if isinstance(found, int) else 0


def label_cursor_of(store: Store) -> LabelCursor:
    """Return how far labelled windows were gone through."""
    found = _read(store, _CURSOR + "loss")
    try:
        return LabelCursor(*(int(found[name]) for name in ("window", "statement", "within")))
    except (KeyError, TypeError, ValueError):
        return LabelCursor()


def put_cursor(store: Store, signal: str, cursor: int | LabelCursor) -> None:
    """Keep how far a signal's windows were gone through."""
    values = {"window": cursor} if isinstance(cursor, int) else asdict(cursor)
    store.state.put(_CURSOR + signal, {"version": VERSION, **values})


def reference_of(store: Store) -> dict[str, Any] | None:
    """Return the packed reference; None before there is one, and for another version's."""
    return _read(store, REFERENCE) or None


def alarms_of(store: Store) -> tuple[Alarm, ...]:
    """Return the alarms that are kept, the earliest first."""
    try:
        return tuple(Alarm(**each) for each in _read(store, ALARMS).get("alarms", ()))
    except TypeError:
        return ()


def note_alarms(store: Store, alarms: Sequence[Alarm]) -> None:
    """Keep and count alarms; the oldest beyond :data:`MOST_ALARMS` go."""
    kept = [asdict(each) for each in (*alarms_of(store), *alarms)][-MOST_ALARMS:]
    store.state.put(ALARMS, {"version": VERSION, "alarms": kept})
    for alarm in alarms:
        store.counters.add({ALARMED + alarm.signal: 1})


def forgets_of(store: Store) -> int:
    """Return how often the store has forgotten somebody."""
    return int(store.state.get(FORGETS, 0))


def _read(store: Store, key: str) -> dict[str, Any]:
    found = store.state.get(key)
    return found if isinstance(found, dict) and found.get("version") == VERSION else {}
