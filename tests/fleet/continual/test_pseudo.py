from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet.continual.pseudo import agreement, choose, wilson_lower_bound, worth_it
from fleet.errors import InputError

tables = st.builds(
    lambda seed, n, k: np.random.default_rng(seed).dirichlet(np.full(k, 0.3), n),
    st.integers(0, 1000),
    st.integers(0, 40),
    st.integers(1, 6),
)


@given(tables, st.floats(0, 1), st.integers(0, 10), st.integers(0, 30))
def test_what_is_chosen_is_confident_capped_and_the_most_confident_of_its_class(
    p: NDArray[np.float64], threshold: float, per_class: int, total: int
) -> None:
    chosen, labels = choose(p, threshold=threshold, per_class=per_class, total=total)
    assert len(chosen) <= total
    assert (np.diff(chosen) > 0).all()
    assert (p[chosen].max(axis=1) >= threshold).all()
    assert (p[chosen].argmax(axis=1) == labels).all()
    counts = np.bincount(labels, minlength=p.shape[1])
    assert counts.max(initial=0) <= per_class
    left = np.setdiff1d(np.flatnonzero(p.max(axis=1) >= threshold), chosen)
    for row in left:
        label = p[row].argmax()
        of_class = p[chosen[labels == label]]
        assert (of_class.max(axis=1, initial=1.0) >= p[row].max()).all()
        # Left out for a cap, and only then: of the class, or of all with the class at its share.
        assert counts[label] == per_class or (
            len(chosen) == total and counts[label] >= counts.max() - 1
        )


def test_a_frequent_class_does_not_crowd_out_a_rare_one() -> None:
    p = np.array([[0.99, 0.01]] * 10 + [[0.1, 0.9]] * 2)
    _, labels = choose(p, threshold=0.8, per_class=9, total=4)
    assert labels.tolist() == [0, 0, 1, 1]


def test_a_known_mix_moves_probabilities_towards_it() -> None:
    p = np.array([[0.6, 0.4]] * 8)
    assert choose(p, threshold=0.7, per_class=9, total=9)[0].size == 0
    _, labels = choose(p, threshold=0.7, per_class=9, total=9, prior=np.array([0.1, 0.9]))
    assert labels.tolist() == [1] * 8


def test_agreement_counts_confident_windows_alone() -> None:
    p = np.array([[0.95, 0.05], [0.6, 0.4], [0.02, 0.98]])
    assert agreement(p, np.array([0, 0, 0]), 0.9) == (1, 2)
    assert agreement(p[:0], np.zeros(0, np.int64), 0.9) == (0, 0)


def test_the_bound_is_wilsons() -> None:
    # Newcombe, Statistics in Medicine 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857, table I.
    known = {(81, 263): 0.2553, (15, 148): 0.0624, (0, 20): 0.0, (1, 29): 0.0061}
    for (right, count), low in known.items():
        assert wilson_lower_bound(right, count, 1.959964) == pytest.approx(low, abs=5e-5)


@given(st.integers(0, 200), st.integers(0, 200))
def test_more_evidence_of_the_same_share_never_lowers_the_bound(right: int, wrong: int) -> None:
    low = wilson_lower_bound(right, right + wrong)
    assert low <= wilson_lower_bound(2 * right, 2 * (right + wrong)) + 1e-12
    assert 0 <= low <= (right / (right + wrong) if right + wrong else 0)


def test_pseudo_labels_stop_without_evidence_and_with_evidence_against_them() -> None:
    assert not worth_it(0, 0)
    assert not worth_it(0, 0, bound=0.0)
    assert not worth_it(24, 24)
    assert worth_it(25, 25)
    assert not worth_it(85, 100)
    assert worth_it(97, 100)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"per_class": -1},
        {"total": -1},
        {"prior": np.ones(3)},
        {"prior": np.array([-1.0, 2.0])},
    ],
)
def test_arguments_out_of_range_are_refused(change: dict[str, object]) -> None:
    words: dict[str, object] = {"threshold": 0.9, "per_class": 1, "total": 1} | change
    with pytest.raises(InputError) as refused:
        choose(np.array([[0.5, 0.5]]), **words)  # type: ignore[arg-type]
    assert refused.value.code == "pseudo-labels"


@pytest.mark.parametrize("p", [np.zeros(3), np.array([[np.nan, 1.0]]), np.array([[-0.5, 1.5]])])
def test_what_is_no_table_of_probabilities_is_refused(p: NDArray[np.float64]) -> None:
    with pytest.raises(InputError, match="probabilities"):
        choose(p, threshold=0.9, per_class=1, total=1)


def test_counts_and_bounds_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="right <= count"):
        wilson_lower_bound(3, 2)
    with pytest.raises(InputError, match="precision"):
        worth_it(1, 1, bound=2)
