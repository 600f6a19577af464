"""Run a grid: bases, then rates, then cells, in parallel, every result kept once it is there.

An interrupted run goes on where it was, and a larger grid in the same folder runs what is new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from fleet.errors import DataError, InputError
from fleet.files import write_json
from fleet.har.dataset import digest
from fleet.har.sources import find
from simulations.benchmarks.continual.cell import BaseRecipe, refused_record, run_cell, train
from simulations.benchmarks.continual.grid import Cell, Grid, cells_of, scenario_of
from simulations.benchmarks.continual.rates import Sweep, climb, sweeps_of
from simulations.benchmarks.continual.store import Store
from simulations.benchmarks.peft.workers import Workers
from simulations.continual.setting import setting_of
from simulations.progress import Progress

__all__ = ["Work", "execute", "plan", "rates_of", "read_cells", "read_rates"]

# What a data set may lack that a scenario speaks of; anything else is a mistake of the caller.
CANNOT = {"scenario-classes", "no-triples"}
Place = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Work:
    """All that a grid needs, in the order in which it is done.

    Args:
        grid: The grid.
        cells: Cells, those included that cannot be.
        refused: Why scenario and data set do not go together, where they do not.
        starts: Classes at the start of every other scenario and data set.
        sweeps: Choices of a rate, and the cells that each serves.
        data: Digests of the data sets.
    """

    grid: Grid
    cells: tuple[Cell, ...]
    refused: Mapping[Place, str]
    starts: Mapping[Place, tuple[str, ...]]
    sweeps: Mapping[Sweep, list[Cell]]
    data: Mapping[str, str]

    def recipe(self, cell: Cell) -> BaseRecipe:
        """Return the network that a cell starts from."""
        return BaseRecipe(cell, self.starts[cell.scenario, cell.data])

    def recipes(self, *, rates_only: bool = False) -> dict[str, BaseRecipe]:
        """Return all networks by their keys."""
        cells = [sweep.cell for sweep in self.sweeps if len(sweep.ladder) > 1]
        cells += [] if rates_only else [cell for cell in self.cells if self.reason(cell) is None]
        found: dict[str, BaseRecipe] = {}
        for cell in cells:
            recipe = self.recipe(cell)
            found.setdefault(recipe.key, recipe)
        return found

    def reason(self, cell: Cell) -> str | None:
        """Return why a cell cannot be; None for one that can."""
        return self.refused.get((cell.scenario, cell.data))


def plan(grid: Grid, only: Mapping[str, frozenset[str]] | None = None) -> Work:
    """Work out what a grid needs.

    Args:
        grid: The grid.
        only: Which of its cells; see ``grid.only_of``.

    Raises:
        InputError: ``no-rehearsal`` when a set cannot have the scenario on which rates are chosen;
            ``data-unknown``.
    """
    cells = tuple(cells_of(grid, only))
    refused: dict[Place, str] = {}
    starts: dict[Place, tuple[str, ...]] = {}
    places = dict.fromkeys((cell.scenario, cell.data) for cell in cells)
    sets = dict.fromkeys(data for _, data in places)
    for scenario, data in {**places, **{(grid.rates.scenario, data): None for data in sets}}:
        try:
            starts[scenario, data] = _start(grid, scenario, data)
        except (InputError, DataError) as error:
            if error.code not in CANNOT:
                raise
            refused[scenario, data] = error.message
    sweeps = sweeps_of((c for c in cells if (c.scenario, c.data) in starts), grid)
    for sweep in sweeps:
        place = sweep.cell.scenario, sweep.cell.data
        if place in refused and len(sweep.ladder) > 1:
            raise InputError(
                "no-rehearsal",
                f"rates for {place[1]} cannot be chosen on {place[0]}: {refused[place]}",
                "Name another scenario in the grid's [rates].",
            )
    return Work(grid, cells, refused, starts, sweeps, {name: _digest(name) for name in sets})


def execute(
    work: Work,
    folder: Path,
    workers: int,
    progress: Progress,
    *,
    keep: bool = False,
    rates_only: bool = False,
) -> list[dict[str, Any]]:
    """Do what is not yet done, and return every cell's record.

    Args:
        work: From :func:`plan`.
        folder: Where results are kept; one made with other data is refused.
        workers: Processes, of one torch thread each; no score depends on how many.
        progress: Told of every base, rate and cell.
        keep: Leave the folders of runs in place.
        rates_only: Stop before the cells.

    Raises:
        InputError: ``bench-folder``.
        RoundError: ``worker-died``.
    """
    store = Store(folder)
    store.claim(work.data)
    with Workers(workers, _begin, (folder,)) as pool:
        recipes = work.recipes(rates_only=rates_only)
        missing = [each for key, each in recipes.items() if not store.base(key).is_file()]
        pool.run(progress, "bases", _train, missing, len(recipes))
        left = [(s, work.recipe(s.cell)) for s in work.sweeps if _open(s, store)]
        tried = [sweep for sweep in work.sweeps if len(sweep.ladder) > 1]
        pool.run(progress, "rates", _choose, left, len(tried))
        if rates_only:
            return read_cells(work, folder)
        jobs = []
        for cell, rate in rates_of(work, store).items():
            if (reason := work.reason(cell)) is not None:
                write_json(store.cell(cell), refused_record(cell, reason))
            elif not is_done(store, cell, rate):
                jobs.append((cell, work.recipe(cell), rate, keep))
        pool.run(progress, "cells", _run, jobs, len(work.cells))
    return read_cells(work, folder)


def read_cells(work: Work, folder: Path) -> list[dict[str, Any]]:
    """Return the records of a grid's cells that are done, in the order of the grid."""
    store = Store(folder)
    paths = [store.cell(cell) for cell in work.cells]
    return [store.read(path) for path in paths if path.is_file()]


def read_rates(work: Work, folder: Path) -> list[dict[str, Any]]:
    """Return what the sweeps of a grid found."""
    store = Store(folder)
    paths = [store.rate(sweep.key) for sweep in work.sweeps]
    return [store.read(path) for path in paths if path.is_file()]


def rates_of(work: Work, store: Store) -> dict[Cell, float]:
    """Return every cell's learning rate, 0 where nothing is trained.

    Raises:
        StorageError: ``bench-folder`` for a sweep whose record is damaged.
    """
    chosen = dict.fromkeys(work.cells, 0.0)
    for sweep, members in work.sweeps.items():
        alone = len(sweep.ladder) == 1
        rate = sweep.start if alone else float(store.read(store.rate(sweep.key))["rate"])
        chosen |= dict.fromkeys(members, rate)
    return chosen


def is_done(store: Store, cell: Cell, rate: float) -> bool:
    """Tell whether a cell was run at this rate."""
    path = store.cell(cell)
    return path.is_file() and store.read(path)["rate"] == rate


def _open(sweep: Sweep, store: Store) -> bool:
    return len(sweep.ladder) > 1 and not store.rate(sweep.key).is_file()


def _start(grid: Grid, scenario: str, data: str) -> tuple[str, ...]:
    config = grid.cell(scenario, data, "frozen", grid.seeds[0]).config()
    timeline = setting_of(config, scenario_of(scenario)).timeline
    return timeline.labels[: timeline.classes_at(0)]


@lru_cache(maxsize=16)
def _digest(data: str) -> str:
    return digest(find(data))


@lru_cache(maxsize=1)
def _place() -> dict[str, Any]:
    """Return what this worker process works on, filled when it starts."""
    return {}


def _begin(folder: Path) -> None:
    torch.set_num_threads(1)
    _place().update(store=Store(folder))


def _train(recipe: BaseRecipe) -> str:
    train(recipe, _place()["store"])
    return f"{recipe.cell.data} seed {recipe.cell.seed}, {len(recipe.labels)} classes"


def _choose(job: tuple[Sweep, BaseRecipe]) -> str:
    sweep, recipe = job
    store: Store = _place()["store"]
    choice = climb(sweep, lambda rate: _rehearse(sweep.cell, recipe, rate, store))
    scores = {f"{r:g}": None if math.isnan(s) else s for r, s in sorted(choice.scores.items())}
    record = sweep.cell.model_dump() | {"rate": choice.rate, "scores": scores}
    write_json(store.rate(sweep.key), record | {"on_edge": choice.on_edge})
    return f"{sweep.cell.data} {sweep.cell.strategy} {choice.rate:g}"


def _rehearse(cell: Cell, recipe: BaseRecipe, rate: float, store: Store) -> float:
    path = store.rehearsal(cell, rate)
    if not path.is_file():
        record = run_cell(cell, recipe, rate, store)
        score = None if record["row"] is None else record["row"]["average_f1"]
        kept = {name: record[name] for name in ("data", "strategy", "rate", "refused", "seconds")}
        write_json(path, kept | {"average_f1": score})
    score = store.read(path)["average_f1"]
    return math.nan if score is None else float(score)


def _run(job: tuple[Cell, BaseRecipe, float, bool]) -> str:
    cell, recipe, rate, keep = job
    store: Store = _place()["store"]
    record = run_cell(cell, recipe, rate, store, keep=keep)
    write_json(store.cell(cell), record)
    return f"{cell.data} {cell.seed} {cell.scenario} {cell.strategy}"
