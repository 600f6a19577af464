"""The learning rate of a strategy on a data set, chosen on a rehearsal that is no cell of the grid.

The rehearsal is a scenario with a seed of its own: other people in the fleet, other devices that
move, other labels. Sets have few people, so some of them are in the fleets of several seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fleet.peft.registry import find
from simulations.benchmarks.continual.grid import Cell, Grid
from simulations.benchmarks.peft.grid import digest_of
from simulations.continual.strategies import strategy

__all__ = ["RateChoice", "Sweep", "climb", "sweeps_of"]


@dataclass(frozen=True)
class Sweep:
    """One choice.

    Args:
        cell: The rehearsal.
        ladder: Rates that may be tried, ascending.
        start: The one that is tried first.
    """

    cell: Cell
    ladder: tuple[float, ...]
    start: float

    @property
    def key(self) -> str:
        """Names the sweep's file."""
        return digest_of([self.cell.key, list(self.ladder), self.start])


@dataclass(frozen=True)
class RateChoice:
    """What a sweep found.

    Args:
        rate: The best one; of equals the one that the climb reached first.
        scores: Average macro-F1 over time of every rate that was tried; NaN where it broke.
        on_edge: Whether the best is an end of a ladder of several.
    """

    rate: float
    scores: dict[float, float]
    on_edge: bool


def sweeps_of(cells: Iterable[Cell], grid: Grid) -> dict[Sweep, list[Cell]]:
    """Return the sweeps that cells need, with the cells that each serves."""
    found: dict[Sweep, list[Cell]] = {}
    for cell in cells:
        one = strategy(cell.strategy)
        if one.method:
            rehearsal = grid.cell(grid.rates.scenario, cell.data, cell.strategy, grid.rates.seed)
            ladder, usual = grid.ladder(cell.strategy), find(one.method).default_rate
            start = min(ladder, key=lambda rate: abs(math.log(rate / usual)))
            found.setdefault(Sweep(rehearsal, ladder, start), []).append(cell)
    return found


def climb(sweep: Sweep, score_of: Callable[[float], float]) -> RateChoice:
    """Climb a ladder until the best rate has a worse neighbour on each side.

    Args:
        sweep: The ladder, and where to begin.
        score_of: Rehearses a rate; called once for each.
    """
    ladder, scores = sweep.ladder, dict[float, float]()

    def score(place: int) -> float:
        rate = ladder[place]
        if rate not in scores:
            scores[rate] = score_of(rate)
        return -math.inf if math.isnan(scores[rate]) else scores[rate]

    best = ladder.index(sweep.start)
    while len(ladder) > 1:
        around = [i for i in (best - 1, best, best + 1) if 0 <= i < len(ladder)]
        top = max(around, key=lambda i: (score(i), i == best))
        if top == best:
            break
        best = top
    on_edge = len(ladder) > 1 and best in (0, len(ladder) - 1)
    return RateChoice(ladder[best], scores, on_edge)
