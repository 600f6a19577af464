"""A base that knows its classes, and a device of which two people gave few labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from clients.agent.answering.world import World
from clients.agent.calibrating.settings import OwnStatistics
from clients.agent.pseudo.settings import PseudoLabels
from clients.agent.store import SplitRule, Store, WindowBatch
from tests.clients.agent.answering.devices import Device, opened
from tests.clients.agent.calibrating.changed import windows_of
from tests.clients.agent.serving.factories import LABELS

__all__ = ["ON", "add", "filled", "guessing"]

ON = PseudoLabels(on=True, share=0.5, windows=64)


def add(
    store: Store,
    count: int,
    *,
    seed: int,
    person: str = "ada",
    side: str = "train",
    labels: bool = True,
    noise: float = 1.0,
) -> None:
    """Put windows of the sensor that the base knows into a store, the n-th batch by its seed."""
    x = windows_of(count, seed, changed=False) * np.float32(noise)
    start = np.arange(count, dtype=np.float64) * 10 + seed * 100_000
    batch = WindowBatch(start_s=start, end_s=start + 1, signals=x)
    store.windows.add(person, side, batch, SplitRule(kind=side))  # type: ignore[arg-type]
    for number, at in enumerate(start if labels else ()):
        label = LABELS[number % len(LABELS)]
        store.labels.range(person, float(at), float(at) + 1, label, person)


def filled(store: Store) -> None:
    """24 labelled windows that train, 32 held out, and 40 of somebody else without a label."""
    add(store, 24, seed=1)
    add(store, 32, seed=2, side="held-out")
    add(store, 40, seed=3, person="ben", labels=False)


@contextmanager
def guessing(
    state: Path, world: World, pseudo: PseudoLabels = ON, own: OwnStatistics | None = None
) -> Iterator[Device]:
    """Open a device that gives its windows labels itself."""
    with opened(state, world) as device:
        tables: dict[str, Any] = {"pseudo_labels": pseudo, "statistics": own or OwnStatistics()}
        device.config[0] = device.config[0].model_copy(update=tables)
        yield device
