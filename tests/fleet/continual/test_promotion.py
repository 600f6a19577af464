from __future__ import annotations

import math

import numpy as np
import pytest

from fleet.continual.promotion import verdict


def counts(right: int, wrong: int) -> np.ndarray:
    """Two classes alike: macro-F1 is the share that is right."""
    return np.array([[right, wrong], [wrong, right]])


@pytest.mark.parametrize(
    ("margin", "promoted"), [(0.0, False), (0.09, False), (0.11, True), (1.0, True)]
)
def test_a_candidate_may_be_worse_by_the_margin_and_no_more(margin: float, promoted: bool) -> None:
    found = verdict([counts(9, 1)], [counts(8, 2)], margin=margin)
    assert found.promoted is promoted
    assert (found.before, found.candidate) == (pytest.approx(0.9), pytest.approx(0.8))
    assert found.windows == 20
    assert "0.8000" in found.reason
    assert "0.9000" in found.reason


def test_an_equal_or_better_candidate_is_promoted_without_any_margin() -> None:
    for better in (9, 10):
        assert verdict([counts(9, 1)], [counts(better, 10 - better)], margin=0.0).promoted


def test_devices_are_pooled_so_one_with_many_windows_counts_for_more() -> None:
    before = [counts(90, 10), counts(1, 9)]
    candidate = [counts(80, 20), counts(9, 1)]
    assert not verdict(before, candidate, margin=0.0).promoted


def test_without_windows_nothing_speaks_against_a_candidate() -> None:
    for tables in ([], [counts(0, 0)]):
        found = verdict(tables, tables, margin=0.0)
        assert found.promoted
        assert found.windows == 0
        assert math.isnan(found.before)
