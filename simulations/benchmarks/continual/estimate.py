"""How long what is left of a grid takes, from what its done part took."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from fleet.continual.scenario import Scenario
from fleet.har.sources import find
from simulations.benchmarks.continual.grid import Cell, scenario_of
from simulations.benchmarks.continual.run import Work, is_done, rates_of, read_cells
from simulations.benchmarks.continual.store import Store

__all__ = ["estimate"]

# Where nothing is measured: milliseconds of a window of a base's training, and of one that arrives
# or is judged, by strategy. HAPT, small CNN, one core of a busy EPYC: machines differ by a factor.
BASE_MS = 1.0
WINDOW_MS = 0.7
USUAL_MS = {
    "frozen": 0.1,
    "fedavg-head": 0.25,
    "ffa-lora": 0.4,
    "core": 0.35,
    "core+drift": 0.4,
    "core+replay": 0.55,
    "core-joint": 0.55,
    "core+replay+personal": 1.35,
    "core+all": 3.1,
}
# Rates of a ladder that a climb tries, as a rule.
EXPECTED_RATES = 4


def estimate(work: Work, folder: Path) -> list[dict[str, Any]]:
    """Return what is left by strategy, and how many CPU seconds it takes.

    Cells of a strategy take the mean time that its done ones took for a window; where there are
    none, a stated default. ``measured`` says which.

    Raises:
        InputError: ``bench-folder``, as ``execute`` would.
    """
    store = Store(folder)
    store.checked(work.data)
    paces = _paces(read_cells(work, folder))
    rows = []
    for name in dict.fromkeys(cell.strategy for cell in work.cells):
        cells, rehearsals = _left(work, store, name)
        pace = paces.get(name, USUAL_MS.get(name, WINDOW_MS) / 1e3)
        windows = sum(_windows(scenario_of(c.scenario)) * c.epochs for c in [*cells, *rehearsals])
        rows.append(
            {
                "strategy": name,
                "cells": len(cells),
                "rehearsals": len(rehearsals),
                "windows": windows,
                "window_ms": round(1e3 * pace, 3),
                "measured": name in paces,
                "seconds": round(windows * pace, 1),
            }
        )
    return [*rows, _bases(work, store)]


def _left(work: Work, store: Store, name: str) -> tuple[list[Cell], list[Cell]]:
    """Return a strategy's cells that are left, and what is to be rehearsed for them."""
    sweeps = {s: c for s, c in work.sweeps.items() if s.cell.strategy == name}
    unknown = {s for s in sweeps if len(s.ladder) > 1 and not store.rate(s.key).is_file()}
    waiting = {cell for sweep in unknown for cell in sweeps[sweep]}
    rehearsals = [s.cell for s in unknown for _ in s.ladder[:EXPECTED_RATES]]
    able = [c for c in work.cells if c.strategy == name and work.reason(c) is None]
    known = {s: c for s, c in sweeps.items() if s not in unknown}
    decided = [c for c in able if c not in waiting]
    rates = rates_of(Work(work.grid, tuple(decided), {}, {}, known, {}), store)
    cells = [c for c in able if c in waiting or not is_done(store, c, rates[c])]
    return cells, rehearsals


def _paces(records: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return CPU seconds of a window by strategy, from done cells."""
    found: dict[str, list[float]] = {}
    for record in records:
        if record["row"] is not None:
            windows = _windows(scenario_of(record["scenario"])) * record["epochs"]
            found.setdefault(record["strategy"], []).append(record["seconds"] / windows)
    return {name: statistics.fmean(paces) for name, paces in found.items()}


def _bases(work: Work, store: Store) -> dict[str, Any]:
    recipes = work.recipes()
    left = [key for key in recipes if not store.base(key).is_file()]
    usual = {key: _base_windows(recipe.cell) * BASE_MS / 1e3 for key, recipe in recipes.items()}
    took = [
        store.read(store.base_time(key))["seconds"] / usual[key]
        for key in recipes
        if key not in left and store.base_time(key).is_file()
    ]
    factor = statistics.fmean(took) if took else 1.0
    return {
        "strategy": "(bases)",
        "cells": len(left),
        "rehearsals": 0,
        "windows": 0,
        "window_ms": 0.0,
        "measured": bool(took),
        "seconds": round(factor * sum(usual[key] for key in left), 1),
    }


def _base_windows(cell: Cell) -> float:
    """Return the windows that a base is trained on, passes counted; few classes make it fewer."""
    source = 1 - cell.config().fleet_fraction
    return _size(cell.data) * source * cell.base_epochs


@lru_cache(maxsize=16)
def _size(data: str) -> int:
    return len(find(data).y)


def _windows(scenario: Scenario) -> int:
    own = scenario.windows_per_period + scenario.test_windows_per_period
    return scenario.devices * scenario.periods * own
