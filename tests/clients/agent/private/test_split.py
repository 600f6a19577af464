"""What judges a private core shares no sample with what trains it, whatever comes later."""

from __future__ import annotations

import numpy as np
import pytest

from clients.agent.private.split import overlapping, split
from clients.agent.serving.probe import normalisation_of
from clients.agent.store.records import Loaded
from fleet.continual.personal import held_back
from tests.clients.agent.serving.factories import CHANNELS, RATE_HZ, STRIDE, WINDOW, make_base

ABOUT = make_base().record
STEP_S = STRIDE / RATE_HZ


def loaded(count: int, people: tuple[str, ...] = ("ada",), step_s: float = STEP_S) -> Loaded:
    """Windows of people in turn, each a stride after that person's last."""
    start = np.arange(count) // len(people) * step_s
    return Loaded(
        np.arange(1, count + 1, dtype=np.int64),
        np.random.default_rng(0).normal(size=(count, CHANNELS, WINDOW)).astype(np.float32),
        ("walk",) * count,
        tuple(people[n % len(people)] for n in range(count)),
        1.7e9 + start,
    )


def drawn() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("people", [("ada",), ("ada", "ben", "cora")])
def test_no_window_that_trains_shares_samples_with_one_that_judges(people: tuple[str, ...]) -> None:
    found = loaded(150, people)
    back = held_back(found.ids)
    near = overlapping(found, back, WINDOW / RATE_HZ)
    for row in np.flatnonzero(~back):
        apart = np.abs(found.start_s - found.start_s[row])
        own = np.array([one == found.people[row] for one in found.people])
        shares = bool((own & back & (apart < 1.5 * STEP_S)).any())
        assert near[row] == shares, row
    assert 0 < (~back & ~near).sum() < (~back).sum()
    sides = split(found, np.zeros(150, np.int64), ABOUT, most=1000, rng=drawn())
    expected = normalisation_of(ABOUT).apply(found.x[~back & ~near])
    assert np.array_equal(sides.windows.train_x, expected)


def test_windows_that_only_touch_are_on_both_sides() -> None:
    found = loaded(100, step_s=WINDOW / RATE_HZ)
    back = held_back(found.ids)
    assert not overlapping(found, back, WINDOW / RATE_HZ)[~back].any()


def test_a_window_stays_on_its_side_when_others_come() -> None:
    classes = np.zeros(60, np.int64)
    few = split(loaded(40), classes[:40], ABOUT, most=1000, rng=drawn())
    many = split(loaded(60), classes, ABOUT, most=1000, rng=drawn())
    kept = few.windows.test_x
    assert np.array_equal(many.windows.test_x[: len(kept)], kept)
    rows = {x.tobytes() for x in few.windows.train_x}
    assert not rows & {x.tobytes() for x in many.windows.test_x}
    assert few.digest != many.digest


def test_of_more_windows_than_may_train_so_many_are_drawn_and_all_kept_back_judge() -> None:
    found, classes = loaded(200, step_s=1.0), np.zeros(200, np.int64)
    sides = split(found, classes, ABOUT, most=10, rng=drawn())
    assert len(sides.windows.train_y) == 10
    assert len(sides.windows.test_y) == held_back(found.ids).sum()
    assert sides.people == {"ada"}
    again = split(found, classes, ABOUT, most=10, rng=drawn())
    assert again.digest == sides.digest


def test_without_windows_there_is_nothing_on_either_side() -> None:
    sides = split(loaded(0), np.zeros(0, np.int64), ABOUT, most=5, rng=drawn())
    assert (len(sides.windows.train_y), len(sides.windows.test_y)) == (0, 0)
    assert sides.people == frozenset()
