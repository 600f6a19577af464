"""Cells and results by hand, for tests that need no training."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from itertools import product
from pathlib import Path

from simulations.engines import Engine
from simulations.sweep.cells import Cell, Fingerprints, cells_of
from simulations.sweep.outcome import Result, RoundPoint
from simulations.sweep.recipe import Recipe, Scalar
from simulations.sweep.store import Failure, Store

PRINTS = Fingerprints(*([lambda name: (name, f"digest of {name}")] * 3))


def recipe(run: dict[str, Scalar] | None = None, **axes: Iterable[Scalar]) -> Recipe:
    named = {key.replace("_", "-"): tuple(values) for key, values in axes.items()}
    return Recipe("test", "Test", {"data": "synthetic"} if run is None else run, named)


def cells(**axes: Iterable[Scalar]) -> list[Cell]:
    return cells_of(recipe(**axes), Engine.cohort, PRINTS)


def result(
    f1: float,
    *,
    method: str = "core",
    rounds: int = 3,
    size: int = 100,
    hours: float | None = None,
    hours_to_target: float | None = None,
) -> Result:
    points = tuple(
        RoundPoint(
            round=number,
            macro_f1=round(f1 * (number + 1) / (rounds + 1), 6),
            macro_f1_devices_mean=0.5,
            macro_f1_devices_worst_decile=0.25,
            bytes_up=size * bool(number),
            bytes_down=size * bool(number),
            wire_bytes_up=2 * size * bool(number),
            wire_bytes_down=2 * size * bool(number),
            accepted=3 * bool(number),
            refused=0,
            seconds=0.0,
            digest=f"{number:064d}" if number else "",
        )
        for number in range(rounds + 1)
    )
    return Result(
        method=method,
        macro_f1=f1,
        macro_f1_devices_mean=0.5,
        macro_f1_devices_worst_decile=0.25,
        trained_parameters=640,
        learning_rate=0.1,
        bytes_up=size,
        bytes_down=size,
        wire_bytes_up=2 * size,
        wire_bytes_down=2 * size,
        refused=0,
        seconds=1.5,
        digest=hashlib.sha256(str(f1).encode()).hexdigest(),
        base_digest="b" * 64,
        hours=hours,
        hours_to_target=hours_to_target,
        rounds=points,
    )


SCORES = {(rank, seed): 0.5 + 0.1 * rank + 0.02 * seed for rank, seed in product((1, 2), (0, 1))}


def kept_sweep(folder: Path) -> Store:
    """A sweep of two ranks and two seeds that are done, and a rank that failed."""
    store = Store(folder, writable=True)
    made = cells(rank=(1, 2, 9), seed=(0, 1))
    store.add(made, "Made <by> hand", ("rank",))
    for cell in made:
        at = (cell.config.rank, cell.config.seed)
        if at in SCORES:
            store.done(cell.id, [result(SCORES[at], size=100 * at[0])], 1.5)
        else:
            store.failed(cell.id, Failure("rank-too-large", "rank 9 <is> not possible", "Less."))
    return store
