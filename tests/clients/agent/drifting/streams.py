"""Streams of made-up activities, as they are and from a sensor that was turned."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.agent.config import DeviceConfig
from clients.agent.drifting.kept import alarms_of
from clients.agent.drifting.settings import Drift
from clients.agent.drifting.watcher import Watcher
from clients.agent.learner import workbench
from clients.agent.store import SplitRule, Store, WindowBatch
from fleet.adapt.base import Base
from tests.clients.agent.answering.devices import Turned, device_config
from tests.clients.agent.serving.factories import CHANNELS, LABELS, MEAN, STD, WINDOW

__all__ = ["QUICK", "add", "alarmed", "config_of", "signals_of", "watch_all", "watcher_of"]

QUICK: dict[str, Any] = {"watch": True, "reference_windows": 96, "warm_up": 100, "threshold": 6.0}
"""Settings under which a few hundred windows are enough."""
BOUT = 15  # windows of one activity
QUARTER = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float64)
Floats = NDArray[np.float32]


def signals_of(count: int, first: int = 0, *, turned: bool = False, seed: int = 0) -> Floats:
    """Windows ``(count, 3, 16)`` in the base's units, from the ``first`` of one stream on.

    Args:
        count: How many.
        first: Place in the stream.
        turned: Whether the sensor was turned by a right angle.
        seed: Of the stream.
    """
    shapes = np.random.default_rng(100).normal(size=(len(LABELS), CHANNELS, WINDOW)) * 1.5
    made = np.empty((count, CHANNELS, WINDOW))
    for place in range(count):
        random = np.random.default_rng([seed, first + place])
        kind = ((first + place) // BOUT * 7 + seed) % len(LABELS)
        noise = random.normal(size=(CHANNELS, WINDOW)) * 0.7
        made[place] = (shapes[kind] + noise) * np.array(STD)[:, None] + np.array(MEAN)[:, None]
    if turned:
        made = np.einsum("ij,njt->nit", QUARTER, made)
    return made.astype(np.float32)


def add(
    store: Store, count: int, first: int = 0, *, turned: bool = False, person: str = "ada"
) -> None:
    """Put windows of the stream into a store; window n starts at 10 n seconds."""
    start = np.arange(first, first + count, dtype=np.float64) * 10
    batch = WindowBatch(start, start + 1, signals_of(count, first, turned=turned))
    store.windows.add(person, "stream", batch, SplitRule(kind="train"))


def config_of(**drift: Any) -> DeviceConfig:
    return device_config().model_copy(update={"drift": Drift(**{**QUICK, **drift})})


def watcher_of(store: Store, base: Base, turned: Turned | None = None, **drift: Any) -> Watcher:
    config = config_of(**drift)
    return Watcher(store, workbench(base), lambda: config, (turned or Turned()).world())


def watch_all(watcher: Watcher, most: int = 1000) -> int:
    """Step until nothing waits; return how many steps had more to do."""
    for steps in range(most):
        if not watcher.step():
            return steps
    raise AssertionError(f"something waits after {most} steps")


def alarmed(store: Store) -> list[tuple[str, float]]:
    """Return each alarm's signal and number of the window in the stream."""
    return [(alarm.signal, alarm.window_s / 10) for alarm in alarms_of(store)]
