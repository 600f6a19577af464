from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet.measure.f1 import confusion, macro_f1, macro_f1_present, score_fleet

CLASSES = 4
PAIRS = st.lists(
    st.tuples(st.integers(0, CLASSES - 1), st.integers(0, CLASSES - 1)), min_size=1, max_size=40
)


def split(pairs: list[tuple[int, int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


@given(pairs=PAIRS)
def test_confusion_counts_equal_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import confusion_matrix  # slow to import

    truth, predicted = split(pairs)
    wanted = confusion_matrix(truth, predicted, labels=range(CLASSES))
    np.testing.assert_array_equal(confusion(truth, predicted, CLASSES), wanted)


@given(pairs=PAIRS)
def test_macro_f1_equals_scikit_learns_over_all_known_classes(pairs: list[tuple[int, int]]) -> None:
    from sklearn.metrics import f1_score

    truth, predicted = split(pairs)
    wanted = f1_score(truth, predicted, labels=range(CLASSES), average="macro", zero_division=0)
    assert macro_f1(confusion(truth, predicted, CLASSES)) == pytest.approx(wanted, abs=1e-12)


@given(pairs=PAIRS)
def test_macro_f1_present_equals_scikit_learns_over_the_true_classes(
    pairs: list[tuple[int, int]],
) -> None:
    from sklearn.metrics import f1_score

    truth, predicted = split(pairs)
    wanted = f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    counts = confusion(truth, predicted, CLASSES)
    assert macro_f1_present(counts) == pytest.approx(wanted, abs=1e-12)


def test_f1_by_hand() -> None:
    # Class 0: precision 3/4, recall 3/5; class 1: precision 4/6, recall 4/5; class 2: never seen.
    counts = np.array([[3, 2, 0], [1, 4, 0], [0, 0, 0]])
    one, two = 2 * 3 / (4 + 5), 2 * 4 / (6 + 5)
    assert macro_f1(counts) == pytest.approx((one + two + 0) / 3)
    assert macro_f1_present(counts) == pytest.approx((one + two) / 2)


def test_a_class_that_is_predicted_but_absent_costs_through_the_others() -> None:
    counts = confusion(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 1]), 2)
    assert macro_f1_present(counts) == pytest.approx(2 * 3 / (3 + 4))
    assert macro_f1(counts) == pytest.approx(3 / 7)


def test_counts_do_not_depend_on_the_integer_type() -> None:
    truth, predicted = np.array([200, 3], np.uint8), np.array([199, 3], np.int16)
    counts = confusion(truth, predicted, 201)
    assert counts.sum() == 2
    assert counts[200, 199] == counts[3, 3] == 1


def test_no_windows_give_empty_counts_and_no_score() -> None:
    nothing = np.zeros(0, np.int64)
    counts = confusion(nothing, nothing, 3)
    np.testing.assert_array_equal(counts, np.zeros((3, 3)))
    assert macro_f1(counts) == 0.0
    assert math.isnan(macro_f1_present(counts))


def device(right: int, wrong: int) -> NDArray[np.int64]:
    """Two classes, equally often; F1 grows with the share of right ones."""
    return np.array([[right, wrong], [wrong, right]])


@pytest.mark.parametrize(("devices", "worst"), [(1, 1), (9, 1), (10, 1), (19, 1), (20, 2), (30, 3)])
def test_the_worst_decile_is_the_mean_of_the_worst_tenth_but_at_least_one(
    devices: int, worst: int
) -> None:
    # Device n has 100 windows per class and n of them wrong: an F1 of 1 - n/100.
    counts = [device(100 - n, n) for n in range(devices)]
    score = score_fleet(counts[::-1])
    own = [1 - n / 100 for n in range(devices)]
    assert score.worst_decile == pytest.approx(np.mean(own[-worst:]))
    assert score.devices_mean == pytest.approx(np.mean(own))


def test_the_pooled_score_is_that_of_all_windows_together() -> None:
    counts = [device(90, 10), device(1, 9), np.array([[5, 0], [0, 0]])]
    score = score_fleet(counts)
    assert score.pooled == pytest.approx(macro_f1(sum(counts)))
    assert score.pooled != pytest.approx(score.devices_mean)


def test_devices_without_tests_do_not_count() -> None:
    counts = [device(9, 1), np.zeros((2, 2), np.int64)]
    assert score_fleet(counts) == score_fleet(counts[:1])
    score = score_fleet([np.zeros((2, 2), np.int64)])
    assert all(math.isnan(v) for v in (score.pooled, score.devices_mean, score.worst_decile))
    assert math.isnan(score_fleet([]).pooled)


@given(pairs=PAIRS, cuts=st.lists(st.integers(0, 40), max_size=3), turn=st.integers(0, 3))
def test_the_score_does_not_depend_on_the_order_of_the_devices(
    pairs: list[tuple[int, int]], cuts: list[int], turn: int
) -> None:
    edges = [0, *sorted(cuts), len(pairs)]
    counts = [confusion(*split(pairs[a:b]), CLASSES) for a, b in pairwise(edges)]
    one, other = score_fleet(counts), score_fleet(counts[turn:] + counts[:turn])
    assert one.pooled == other.pooled
    assert one.devices_mean == other.devices_mean
    assert one.worst_decile == other.worst_decile
