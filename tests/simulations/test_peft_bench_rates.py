from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from fleet.peft.tuners import TUNERS
from simulations.benchmarks.peft import rates
from simulations.benchmarks.peft.bases import Bases
from simulations.benchmarks.peft.grid import Cell, grid_of
from simulations.benchmarks.peft.rates import RateChoice, Sweep, sweep_of, sweeps_of
from simulations.benchmarks.peft.run import plan

GRID = grid_of({"parts": [{"data": ["synthetic"]}]}, "a test")
HEAD = Sweep(Cell(data="", model="small-cnn", method="head"), ())
START = TUNERS["head"].default_rate
LADDER = TUNERS["head"].rates


def climb(monkeypatch: pytest.MonkeyPatch, scores: Mapping[float, float]) -> RateChoice:
    monkeypatch.setattr(rates, "_score", lambda sweep, grid, bases, rate: scores.get(rate, 0.1))
    return sweep_of(HEAD, GRID, Bases(Path("nowhere")))


def test_a_climb_ends_where_both_neighbours_are_worse(monkeypatch: pytest.MonkeyPatch) -> None:
    place = LADDER.index(START)
    rising = {rate: 0.2 + i / 100 for i, rate in enumerate(LADDER[: place + 2])}
    choice = climb(monkeypatch, rising)
    assert choice.rate == LADDER[place + 1]
    assert set(choice.scores) == set(LADDER[place - 1 : place + 3])
    assert not choice.at_edge


def test_of_equal_rates_the_usual_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = climb(monkeypatch, {})
    assert choice.rate == START
    assert len(choice.scores) == 3


def test_a_rate_that_diverges_is_never_chosen_over_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = LADDER.index(START)
    choice = climb(monkeypatch, dict.fromkeys(LADDER[place:], math.nan))
    assert choice.rate == LADDER[place - 1]


def test_a_climb_to_the_end_of_the_ladder_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = climb(monkeypatch, {rate: 1 - rate / 10 for rate in LADDER})
    assert choice.rate == min(LADDER)
    assert choice.at_edge


def test_one_rate_serves_the_splits_seeds_and_folds_of_a_half_and_no_other_method() -> None:
    part = {
        "data": ["synthetic"],
        "methods": ["core", "head", "adabn"],
        "ranks": [1, 2],
        "splits": ["chronological", "random"],
        "folds": 0,
        "seeds": 2,
    }
    work = plan(grid_of({"parts": [part]}, "a test"))
    assert len(work.sweeps) == 3 * 2  # two ranks of cores and the head, in two halves
    served = [cell for members in work.sweeps.values() for cell in members]
    assert len(served) == len(set(served)) == len(work.cells) - 12 * 2 * 2  # AdaBN has none
    for sweep, members in work.sweeps.items():
        assert {(c.method, c.rank) for c in members} == {(sweep.variant.method, sweep.variant.rank)}
        assert len(members) == 6 * 2 * 2
    again = sweeps_of(reversed(served))
    assert {s.key for s in again} == {s.key for s in work.sweeps}
