"""The learning rate of a method: swept on source people who are held out of a rehearsal's base.

One rate serves all data sets of a grid (as LoRA-Edge uses one), all folds of one half of the people
and all seeds; each rank, frame, shift and setting has its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from fleet.peft.tuners import find
from simulations.benchmarks.peft.bases import BaseRecipe, Bases
from simulations.benchmarks.peft.cell import adapt
from simulations.benchmarks.peft.grid import Cell, Grid, digest_of
from simulations.benchmarks.peft.people import data_of, folds_of, rehearsal_of

__all__ = ["RateChoice", "Sweep", "sweep_of", "sweeps_of"]

LAST_POINTS = 3  # of a curve, averaged: a single point of a small person is noisy


@dataclass(frozen=True)
class Sweep:
    """One sweep.

    Args:
        variant: What is swept: a cell without data set, fold and seed.
        folds: ``(data, fold)`` that name the half of the people who must not be looked at.
    """

    variant: Cell
    folds: tuple[tuple[str, int], ...]

    @property
    def key(self) -> str:
        """Names the sweep's file."""
        return digest_of([self.variant.model_dump(), [list(f) for f in self.folds]])


@dataclass(frozen=True)
class RateChoice:
    """What a sweep found.

    Args:
        rate: The best one; of equals the one that the climb reached first.
        scores: Mean macro-F1 of every rate that was tried; NaN: diverged.
    """

    rate: float
    scores: dict[float, float]

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the smallest or largest that was tried."""
        return len(self.scores) > 1 and self.rate in (min(self.scores), max(self.scores))


def sweeps_of(cells: Iterable[Cell]) -> dict[Sweep, list[Cell]]:
    """Return every sweep that cells need, with the cells that it serves."""
    groups: dict[tuple[Cell, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((_variant(cell), _half(cell)), []).append(cell)
    found = {}
    for (variant, half), members in groups.items():
        names = sorted({cell.data for cell in members})
        folds = tuple((name, _half_name(name, half, variant.unseen)) for name in names)
        found[Sweep(variant, folds)] = members
    return found


def sweep_of(
    sweep: Sweep, grid: Grid, bases: Bases, on_rate: Callable[[float, float], None] | None = None
) -> RateChoice:
    """Climb the method's ladder from its default rate until the best one has neighbours."""
    tuner = find(sweep.variant.method)
    scores: dict[float, float] = {}

    def score(place: int) -> float:
        rate = tuner.rates[place]
        if rate not in scores:
            scores[rate] = _score(sweep, grid, bases, rate)
            if on_rate is not None:
                on_rate(rate, scores[rate])
        return -math.inf if math.isnan(scores[rate]) else scores[rate]

    best = tuner.rates.index(tuner.default_rate)
    while True:
        around = [i for i in (best - 1, best, best + 1) if 0 <= i < len(tuner.rates)]
        top = max(around, key=lambda i: (score(i), i == best))
        if top == best:
            break
        best = top
    return RateChoice(tuner.rates[best], scores)


def _score(sweep: Sweep, grid: Grid, bases: Bases, rate: float) -> float:
    found = []
    for recipe, cell in rehearsals_of(sweep, grid):
        outcome = adapt(cell, bases, recipe, rate)
        points = [f1 for _, f1 in outcome.curve[1:][-LAST_POINTS:]]
        found.append(float(np.mean(points)) if points else math.nan)
    return float(np.mean(found))


def rehearsals_of(sweep: Sweep, grid: Grid) -> list[tuple[BaseRecipe, Cell]]:
    """Return the cells that a sweep runs at each rate, with their bases."""
    found = []
    for data, fold in sweep.folds:
        dataset, _ = data_of(data, sweep.variant.unseen)
        teachers, players = rehearsal_of(data, dataset, fold, sweep.variant.unseen, grid.players)
        recipe = BaseRecipe(teachers, sweep.variant.model, grid.source_windows, grid.epochs)
        for player in players:
            # A seed of its own: the fleet's shift must not be looked at either.
            update = {"data": data, "fold": player, "seed": 1000}
            found.append((recipe, sweep.variant.model_copy(update=update)))
    return found


def _variant(cell: Cell) -> Cell:
    fixed = {"data": "", "fold": 0, "seed": 0, "split": "chronological", "setting": "main"}
    return cell.model_copy(update=fixed)


def _half(cell: Cell) -> int:
    dataset, _ = data_of(cell.data, cell.unseen)
    order = folds_of(dataset)
    return int(order.index(cell.fold) >= (len(order) + 1) // 2)


def _half_name(data: str, half: int, unseen: int) -> int:
    """Return the first person of a half, who names it."""
    dataset, _ = data_of(data, unseen)
    order = folds_of(dataset)
    return order[(len(order) + 1) // 2] if half else order[0]
