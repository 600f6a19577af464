from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import DataError
from fleet.har import synthetic
from fleet.har.dataset import Channel, DataSet
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from simulations.benchmarks.peft import bases
from simulations.benchmarks.peft import cell as cell_module
from simulations.benchmarks.peft.bases import BaseRecipe, Bases, Pretrained
from simulations.benchmarks.peft.cell import adapt
from simulations.benchmarks.peft.grid import Cell, grid_of
from simulations.benchmarks.peft.people import (
    cut,
    data_of,
    folds_of,
    rehearsal_of,
    teachers_of,
)
from simulations.benchmarks.peft.rates import rehearsals_of
from simulations.benchmarks.peft.run import plan


def made_up(people: int, name: str = "made-up", windows: int = 10) -> DataSet:
    """People who wear one axis; windows share no samples, and each value names its row."""
    rows = people * 2 * windows
    person = np.repeat(np.arange(people) * 3 + 1, 2 * windows)
    return DataSet(
        name=name,
        labels=("still", "moving"),
        channels=(Channel("acc_x", "m/s^2"),),
        rate_hz=50.0,
        window=8,
        stride=8,
        x=np.arange(rows * 8, dtype=np.int16).reshape(rows, 1, 8),
        scale=np.ones(1, np.float32),
        y=np.tile(np.repeat([0, 1], windows), people).astype(np.int16),
        subject=person.astype(np.int16),
        rec=person.astype(np.int32),
    )


@given(people=st.integers(4, 40), players=st.integers(1, 5), name=st.sampled_from("abc"))
@settings(max_examples=40, deadline=None)
def test_nobody_who_is_judged_is_looked_at_before(people: int, players: int, name: str) -> None:
    dataset = made_up(people, name, windows=5)
    order = folds_of(dataset)
    assert sorted(order) == list(dataset.subjects)
    for fold in order:
        teachers = teachers_of("made-up", dataset, fold, 0)
        assert set(teachers.people) == set(dataset.subjects) - {fold}
        rehearsers, targets = rehearsal_of("made-up", dataset, fold, 0, players)
        assert 1 <= len(targets) <= players
        assert rehearsers.people
        assert not set(rehearsers.people) & set(targets)
        assert fold not in {*rehearsers.people, *targets}
        # Nobody of the target's half: the other folds of this rate are not looked at either.
        half = order[: (people + 1) // 2] if fold in order[: (people + 1) // 2] else None
        own = set(half or order[(people + 1) // 2 :])
        assert not own & {*rehearsers.people, *targets}


def test_all_people_of_a_half_share_one_rehearsal() -> None:
    dataset = made_up(9)
    order = folds_of(dataset)
    for half in (order[:5], order[5:]):
        assert len({rehearsal_of("made-up", dataset, fold, 0, 2) for fold in half}) == 1


def test_the_order_of_people_hangs_on_the_name_alone() -> None:
    one, again = (folds_of(made_up(12)) for _ in range(2))
    assert one == again
    assert one != folds_of(made_up(12, "another"))


def test_fewer_than_four_people_are_too_few() -> None:
    with pytest.raises(DataError, match="needs four") as caught:
        folds_of(made_up(3))
    assert caught.value.code == "too-few-people"


def test_who_has_one_class_at_the_end_is_not_held_out_and_still_teaches() -> None:
    dataset = made_up(6)
    dataset.y[dataset.subject == 4] = 0
    assert set(folds_of(dataset)) == set(dataset.subjects) - {4}
    assert 4 in teachers_of("made-up", dataset, 1, 0).people


@given(counts=st.lists(st.integers(1, 30), min_size=2, max_size=4), seed=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_a_random_split_is_disjoint_whole_and_four_fifths_of_each_class(
    counts: list[int], seed: int
) -> None:
    y = np.repeat(np.arange(len(counts)), counts).astype(np.int16)
    n = len(y)
    dataset = DataSet(
        "made-up",
        tuple("abcd"[: len(counts)]),
        (Channel("acc_x", "m/s^2"),),
        50.0,
        8,
        8,
        np.arange(n * 8, dtype=np.int16).reshape(n, 1, 8),
        np.ones(1, np.float32),
        y,
        np.ones(n, np.int16),
        np.ones(n, np.int32),
    )
    share = cut(dataset, 1, "random", seed)
    assert sorted([*share.train, *share.test]) == list(range(n))
    for label, count in enumerate(counts):
        assert (y[share.train] == label).sum() == max(1, count * 4 // 5)
    assert np.array_equal(share.train, cut(dataset, 1, "random", seed).train)


def test_random_splits_differ_by_seed_and_chronological_ones_do_not() -> None:
    dataset = made_up(4)
    assert not np.array_equal(cut(dataset, 1, "random", 0).test, cut(dataset, 1, "random", 1).test)
    assert np.array_equal(cut(dataset, 1, seed=0).test, cut(dataset, 1, seed=1).test)


def test_a_chronological_split_trains_on_the_first_four_fifths_of_each_class() -> None:
    share = cut(made_up(4), 1)
    assert share.train.tolist() == [*range(8), *range(10, 18)]
    assert share.test.tolist() == [8, 9, 18, 19]


def test_a_random_split_of_overlapping_windows_shares_samples_and_a_chronological_does_not() -> (
    None
):
    dataset = synthetic.make(people=1, windows_per_activity=20, recordings=1)

    def shared(split: str) -> int:
        share = cut(dataset, 1, split)
        ends = {dataset.x[row, :, 64:].tobytes() for row in share.train}
        starts = {dataset.x[row, :, :64].tobytes() for row in share.train}
        return sum(
            dataset.x[row, :, :64].tobytes() in ends or dataset.x[row, :, 64:].tobytes() in starts
            for row in share.test
        )

    assert shared("chronological") == 0
    assert shared("random") > len(cut(dataset, 1, "random").test) / 2


def test_a_set_is_read_once_however_it_is_asked_for(tmp_path: Path) -> None:
    assert data_of("synthetic")[0] is data_of("synthetic", 0)[0]
    dataset, seen = data_of("synthetic", 2)
    assert (len(dataset.labels), seen) == (7, 5)


def test_every_rehearsal_of_a_plan_keeps_clear_of_the_people_whom_its_rate_serves() -> None:
    part = {"data": ["synthetic"], "methods": ["core", "head"], "folds": 0, "seeds": 1}
    work = plan(grid_of({"parts": [part]}, "a test"))
    served: set[int] = set()
    for sweep, members in work.sweeps.items():
        targets = {cell.fold for cell in members}
        served |= targets
        for recipe, rehearsal in rehearsals_of(sweep, work.grid):
            assert not targets & {*recipe.teachers.people, rehearsal.fold}
            assert rehearsal.fold not in recipe.teachers.people
            assert rehearsal.seed not in {cell.seed for cell in members}
            assert rehearsal.split == "chronological"
    assert served == set(data_of("synthetic")[0].subjects)
    for cell in work.cells:
        assert cell.fold not in work.recipe(cell).teachers.people


class Untrained(Bases):
    """Bases with the weights that a network is born with."""

    def _load(self, recipe: BaseRecipe) -> Pretrained:
        dataset, _ = data_of(recipe.teachers.data)
        config = ModelConfig(name="small-cnn", channels=6, classes=7, window=dataset.window)
        return Pretrained(build(config).eval(), bases.fit(dataset, recipe.teachers.people))


@cache
def untrained() -> tuple[Bases, BaseRecipe]:
    dataset, _ = data_of("synthetic")
    teachers = teachers_of("synthetic", dataset, folds_of(dataset)[0], 0)
    return Untrained(Path("nowhere")), BaseRecipe(teachers, "small-cnn", 64, 1)


def cell_of(**changes: Any) -> Cell:
    fold = folds_of(data_of("synthetic")[0])[0]
    fields = {"data": "synthetic", "model": "small-cnn", "method": "head", "fold": fold}
    return Cell.model_validate({**fields, "steps": 3, **changes})


@pytest.mark.parametrize("frame", ["svd", "gradient", "people"])
def test_frames_are_made_of_teachers_windows_alone(
    frame: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases_of, recipe = untrained()
    asked: set[int] = set()
    real: Callable[..., Any] = bases.pool

    def spy(dataset: DataSet, people: Any) -> Any:
        asked.update(people)
        return real(dataset, people)

    monkeypatch.setattr(bases, "pool", spy)
    for name, size in {"FRAME_PEOPLE": 3, "FRAME_WINDOWS": 4, "FRAME_ROTATIONS": 0}.items():
        monkeypatch.setattr(bases, name, size)
    fresh = Untrained(bases_of.folder)
    cell = cell_of(method="core", frame=frame, rank=2)
    start = fresh.start(recipe, cell, torch.zeros(4, 6, 128))
    assert start.frames
    assert asked == set(recipe.teachers.people)


def test_what_a_method_cannot_do_is_an_outcome_with_its_reason() -> None:
    bases_of, recipe = untrained()
    outcome = adapt(cell_of(method="galore", rank=2, optimiser="sgd"), bases_of, recipe, 1e-3)
    assert "defined with Adam" in outcome.refused
    assert outcome.as_record()["macro_f1"] is None


@pytest.mark.parametrize("method", ["galore", "lora"])
def test_training_that_diverges_has_no_score_and_stops_no_grid(method: str) -> None:
    bases_of, recipe = untrained()
    outcome = adapt(cell_of(method=method, rank=2), bases_of, recipe, 1e30)
    assert np.isnan(outcome.macro_f1)
    assert not outcome.refused
    assert outcome.as_record()["curve"][-1][1] is None


def test_training_and_test_windows_do_not_share_their_noise() -> None:
    bases_of, recipe = untrained()
    normalisation = bases_of.load(recipe).normalisation
    dataset, _ = data_of("synthetic")
    clean, noisy = (
        cell_module._windows(cell_of(shift=shift), dataset, normalisation)
        for shift in ("none", "noise:50")
    )
    train, test = (noisy[i][0] - clean[i][0] for i in (1, 2))
    together = torch.corrcoef(torch.stack([train[: len(test)].flatten(), test.flatten()]))
    assert abs(float(together[0, 1])) < 0.05
    assert train.std() > 0.1


def test_few_labels_do_not_keep_unlabelled_windows_from_a_method_that_needs_none() -> None:
    bases_of, recipe = untrained()
    scores = [
        adapt(cell_of(method="adabn", labels=share), bases_of, recipe, 0.0).macro_f1
        for share in (1.0, 0.05)
    ]
    assert scores[0] == scores[1]
    curves = [adapt(cell_of(labels=share), bases_of, recipe, 1e-2).curve for share in (1.0, 0.05)]
    assert curves[0] != curves[1]
