"""Run a grid: bases, then rates, then cells, in parallel, every result kept as soon as it is there.

A folder holds one JSON file per sweep and per cell, so an interrupted run goes on where it was, and
a larger grid in the same folder runs only what is new.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fleet.errors import InputError, StorageError
from fleet.files import write_json
from fleet.har.dataset import digest
from fleet.har.shifts import parse
from fleet.peft.tuners import find
from simulations.benchmarks.peft.bases import BaseRecipe, Bases
from simulations.benchmarks.peft.cell import adapt
from simulations.benchmarks.peft.costs import Variant, step_seconds
from simulations.benchmarks.peft.grid import Cell, Grid, cells_of, check_names, headings_of
from simulations.benchmarks.peft.people import data_of, folds_of, teachers_of
from simulations.benchmarks.peft.rates import Sweep, rehearsals_of, sweep_of, sweeps_of
from simulations.benchmarks.peft.workers import Workers
from simulations.progress import Progress
from simulations.versions import machine, versions

__all__ = ["Work", "estimate", "execute", "plan", "read_cells", "read_rates", "under_headings"]

FORMAT = "corefleet.bench-peft.1"
EXPECTED_RATES = 4


@dataclass(frozen=True, eq=False)
class Work:
    """All that a grid needs, in the order in which it is done.

    Args:
        grid: The grid.
        cells: Cells.
        sweeps: Rate sweeps, and the cells that each serves.
        recipes: Bases.
        headings: Headings that ask for a cell, by its key.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    sweeps: dict[Sweep, list[Cell]]
    recipes: tuple[BaseRecipe, ...]
    headings: Mapping[str, tuple[str, ...]]

    def recipe(self, cell: Cell) -> BaseRecipe:
        """Return the base that a cell starts from."""
        return _recipe(cell, self.grid)


def plan(grid: Grid) -> Work:
    """Work out what a grid needs.

    Raises:
        InputError: For unknown methods, backbones, frames, shifts or data sets.
        DataError: ``too-few-people``, or what a shift says of a set that it does not fit.
    """
    check_names(grid)
    _check_shifts(grid)
    names = dict.fromkeys(name for part in grid.parts for name in part.data)
    people = {name: folds_of(data_of(name)[0]) for name in names}
    cells = tuple(cells_of(grid, people))
    sweeps = sweeps_of(cell for cell in cells if find(cell.method).trains)
    recipes = dict.fromkeys(_recipe(cell, grid) for cell in cells)
    recipes |= dict.fromkeys(r for sweep in sweeps for r, _ in rehearsals_of(sweep, grid))
    return Work(grid, cells, sweeps, tuple(recipes), headings_of(grid, people))


def execute(work: Work, folder: Path, workers: int, progress: Progress) -> list[dict[str, Any]]:
    """Do what is not yet done, and return every cell's record.

    Args:
        work: From :func:`plan`.
        folder: Where results are kept; one made with other bases or data is refused.
        workers: Processes, of one torch thread each.
        progress: Told of every base, rate and cell.

    Raises:
        InputError: ``bench-folder`` when the folder's results are not comparable.
        RoundError: ``worker-died``.
    """
    _claim(work, folder)
    bases = Bases(folder / "bases")
    with Workers(workers, _begin, (folder, work.grid)) as pool:
        missing = [r for r in work.recipes if not bases.path(r).is_file()]
        pool.run(progress, "bases", _train_base, missing, len(work.recipes))
        sweeps = [s for s in work.sweeps if not _sweep_path(folder, s).is_file()]
        pool.run(progress, "rates", _choose_rate, sweeps, len(work.sweeps))
        jobs = [
            (cell, _recipe(cell, work.grid), rate)
            for cell, rate in _rates(work, folder)
            if not _is_done(folder, cell, rate)
        ]
        pool.run(progress, "cells", _run_cell, jobs, len(work.cells))
    return read_cells(work, folder)


def read_cells(work: Work, folder: Path) -> list[dict[str, Any]]:
    """Return the records of a grid's cells that are done."""
    found = []
    for cell in work.cells:
        path = _cell_path(folder, cell)
        if path.is_file():
            # The heading is the grid's: one cell may stand under another in a later grid.
            found.append(_read(path) | {"setting": cell.setting})
    return found


def under_headings(work: Work, records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return each record once for every heading that asks for its cell."""
    found = []
    for record in records:
        cell = Cell.model_validate({name: record[name] for name in Cell.model_fields})
        found += [record | {"setting": heading} for heading in work.headings[cell.key]]
    return found


def read_rates(work: Work, folder: Path) -> list[dict[str, Any]]:
    """Return what the sweeps of a grid found."""
    paths = [_sweep_path(folder, sweep) for sweep in work.sweeps]
    return [_read(path) for path in paths if path.is_file()]


def _rates(work: Work, folder: Path) -> list[tuple[Cell, float]]:
    chosen = {cell.key: 0.0 for cell in work.cells}
    for sweep, members in work.sweeps.items():
        rate = float(_read(_sweep_path(folder, sweep))["rate"])
        chosen |= {cell.key: rate for cell in members}
    return [(cell, chosen[cell.key]) for cell in work.cells]


def _is_done(folder: Path, cell: Cell, rate: float) -> bool:
    """Whether a cell was run at this rate: with more data sets a sweep may choose another."""
    path = _cell_path(folder, cell)
    return path.is_file() and _read(path)["rate"] == rate


def _read(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        StorageError: ``bench-folder`` when the file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StorageError(
            "bench-folder", f"{path} is damaged: {error}", "Delete it; it is made again."
        ) from error
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    return found


def _check_shifts(grid: Grid) -> None:
    """Apply every shift to a window of every set that is to be worn that way."""
    for part in grid.parts:
        for name in part.data:
            dataset, _ = data_of(name)
            for shift in filter(None, map(parse, part.shifts)):
                window = dataset.physical(slice(0, 1))
                shift.apply(window, dataset.channels, dataset.rate_hz, seed=0, device="")


@lru_cache(maxsize=1)
def _place() -> dict[str, Any]:
    """Return what this worker process works on, filled when it starts."""
    return {}


def _begin(folder: Path, grid: Grid) -> None:
    torch.set_num_threads(1)
    _place().update(folder=folder, grid=grid, bases=Bases(folder / "bases"))


def _train_base(recipe: BaseRecipe) -> str:
    _place()["bases"].train(recipe)
    return f"{recipe.teachers.data} {recipe.model}"


def _choose_rate(sweep: Sweep) -> str:
    place = _place()
    choice = sweep_of(sweep, place["grid"], place["bases"])
    scores = {f"{r:g}": None if s != s else s for r, s in sorted(choice.scores.items())}
    record = {"variant": sweep.variant.model_dump(), "folds": sweep.folds, "rate": choice.rate}
    write_json(
        _sweep_path(place["folder"], sweep),
        record | {"scores": scores, "at_edge": choice.at_edge},
    )
    return f"{sweep.variant.model} {sweep.variant.method} {choice.rate:g}"


def _run_cell(job: tuple[Cell, BaseRecipe, float]) -> str:
    cell, recipe, rate = job
    place = _place()
    outcome = adapt(cell, place["bases"], recipe, rate)
    record = cell.model_dump() | {"rate": rate} | outcome.as_record()
    write_json(_cell_path(place["folder"], cell), record)
    return f"{cell.data} {cell.model} {cell.method}"


def _recipe(cell: Cell, grid: Grid) -> BaseRecipe:
    dataset, _ = data_of(cell.data, cell.unseen)
    teachers = teachers_of(cell.data, dataset, cell.fold, cell.unseen)
    return BaseRecipe(teachers, cell.model, grid.source_windows, grid.epochs)


def _cell_path(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.key}.json"


def _sweep_path(folder: Path, sweep: Sweep) -> Path:
    return folder / "rates" / f"{sweep.key}.json"


def _claim(work: Work, folder: Path) -> None:
    """Write what the folder's results depend on, or refuse one that depends on other things."""
    content = _checked(work, folder)
    write_json(folder / "bench.json", content | {"machine": machine(), "versions": versions()})


def _checked(work: Work, folder: Path) -> dict[str, Any]:
    fixed = {
        "format": FORMAT,
        "bases": work.grid.model_dump(include={"source_windows", "epochs", "players"}),
    }
    data = {name: digest(data_of(name)[0]) for name in {cell.data for cell in work.cells}}
    path = folder / "bench.json"
    if path.is_file():
        before = _read(path)
        known = before.get("data", {})
        wrong = [key for key in fixed if before.get(key) != fixed[key]]
        wrong += [name for name in data if known.get(name, data[name]) != data[name]]
        if wrong:
            raise InputError(
                "bench-folder",
                f"{folder} holds results of another {', '.join(wrong)}; they cannot be compared",
                "Give another --out.",
            )
        data = known | data
    return fixed | {"data": data}


def estimate(work: Work, folder: Path) -> list[dict[str, Any]]:
    """Return cells left, steps, measured seconds per step and the estimate, by backbone and method.

    A step is timed once per backbone and method, on untrained weights. A sweep counts as four
    rates; scoring and frames are left out, so that the whole takes somewhat longer.

    Raises:
        InputError: ``bench-folder``, as :func:`execute` would.
    """
    _checked(work, folder)
    like = _first_of_shape(work)
    steps: dict[Variant, int] = {}
    cells: dict[Variant, int] = {}
    for cell in work.cells:
        if not _cell_path(folder, cell).is_file():
            key = _same_cost(cell, like)
            steps[key] = steps.get(key, 0) + cell.steps * find(cell.method).trains
            cells[key] = cells.get(key, 0) + 1
    for sweep in work.sweeps:
        if not _sweep_path(folder, sweep).is_file():
            for _, cell in rehearsals_of(sweep, work.grid):
                key = _same_cost(cell, like)
                steps[key] = steps.get(key, 0) + EXPECTED_RATES * cell.steps
    times = step_seconds([key for key, count in steps.items() if count])
    return [
        {
            "data": key.data,
            "model": key.model,
            "method": key.method,
            "frame": key.frame,
            "rank": key.rank,
            "cells": cells.get(key, 0),
            "steps": count,
            "step_seconds": times.get(key, 0.0),
            "seconds": count * times.get(key, 0.0),
        }
        for key, count in steps.items()
    ]


def _same_cost(cell: Cell, like: dict[str, str]) -> Variant:
    """Return the variant that stands for all data sets of one shape and all ranks of a cell."""
    return replace(Variant.of(cell), rank=min(cell.rank, 2), data=like[cell.data])


def _first_of_shape(work: Work) -> dict[str, str]:
    """Return, for every data set, the first one that has the same channels and window."""
    first: dict[tuple[int, int], str] = {}
    found = {}
    for name in dict.fromkeys(cell.data for cell in work.cells):
        dataset, _ = data_of(name)
        found[name] = first.setdefault((len(dataset.channels), dataset.window), name)
    return found
