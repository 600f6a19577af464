from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fleet.adapt.frames import make_frame
from fleet.adapt.merge import merge
from fleet.adapt.state import CoreState, Layout
from fleet.errors import MismatchError
from fleet.federate.aggregate import (
    LARGEST_ENTRY,
    LARGEST_TOTAL_WEIGHT,
    LARGEST_WEIGHT,
    STEP_BITS,
    PartialSum,
    dequantise,
    quantise,
    total,
)

SIZE = 3
LARGEST_STEPS = int(LARGEST_ENTRY) << STEP_BITS
steps_of = hnp.arrays(np.int64, SIZE, elements=st.integers(-LARGEST_STEPS, LARGEST_STEPS))
updates_of = st.lists(st.tuples(steps_of, st.integers(1, LARGEST_WEIGHT)), min_size=1, max_size=8)
entries = st.floats(-LARGEST_ENTRY, LARGEST_ENTRY, allow_nan=False)

Updates = list[tuple[NDArray[np.int64], int]]


def sum_of(updates: Updates) -> PartialSum:
    result = PartialSum.empty(SIZE)
    for steps, weight in updates:
        result = result.add(steps, weight)
    return result


def same(one: PartialSum, two: PartialSum) -> bool:
    return (one.total.tolist(), one.weight, one.count) == (
        two.total.tolist(),
        two.weight,
        two.count,
    )


def half_to_even(value: Fraction) -> int:
    return round(value)


@given(updates_of)
def test_a_sum_made_at_once_is_the_sum_made_one_by_one(updates: Updates) -> None:
    assert same(PartialSum.of(updates, SIZE), sum_of(updates))


@pytest.mark.parametrize(
    ("updates", "code"),
    [
        ([(np.zeros(SIZE, np.int64), 0)], "sum-bound"),
        ([(np.zeros(SIZE, np.int64), LARGEST_WEIGHT + 1)], "sum-bound"),
        ([(np.zeros(SIZE, np.int64), LARGEST_WEIGHT)] * (2**15 + 1), "sum-bound"),
        ([(np.zeros(SIZE + 1, np.int64), 1)], "layout-size"),
    ],
)
def test_a_sum_made_at_once_keeps_the_same_bounds(updates: Updates, code: str) -> None:
    with pytest.raises(MismatchError) as caught:
        PartialSum.of(updates, SIZE)
    assert caught.value.code == code


@given(updates_of, st.randoms(use_true_random=False))
def test_the_sum_has_the_same_bits_in_every_order(updates: Updates, random: object) -> None:
    shuffled = list(updates)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert same(sum_of(updates), sum_of(shuffled))
    assert sum_of(updates).mean().tolist() == sum_of(shuffled).mean().tolist()


@given(updates_of, st.lists(st.integers(0, 8), max_size=4))
def test_partial_sums_add_up_to_the_sum_however_they_are_batched(
    updates: Updates, cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(updates)) for cut in cuts), len(updates)]
    parts = [sum_of(updates[a:b]) for a, b in itertools.pairwise(edges)]
    assert same(total(parts, SIZE), sum_of(updates))
    assert same(total(reversed(parts), SIZE), sum_of(updates))


@given(updates_of)
def test_the_mean_is_the_rational_mean_rounded_half_to_even(updates: Updates) -> None:
    weight = sum(w for _, w in updates)
    wanted = [
        half_to_even(Fraction(sum(int(steps[i]) * w for steps, w in updates), weight))
        for i in range(SIZE)
    ]
    assert sum_of(updates).mean().tolist() == wanted


@pytest.mark.parametrize(
    ("entries", "mean"),
    [
        ((0, 1), 0),
        ((1, 2), 2),
        ((2, 3), 2),
        ((0, -1), 0),
        ((-1, -2), -2),
        ((-2, -3), -2),
        ((-1, 0, 0), 0),
        ((-2, 0, 0), -1),
        ((2, 0, 0), 1),
    ],
)
def test_ties_go_to_the_even_step_on_both_sides_of_zero(
    entries: tuple[int, ...], mean: int
) -> None:
    added = sum_of([(np.full(SIZE, entry, np.int64), 1) for entry in entries])
    assert added.mean().tolist() == [mean] * SIZE


@given(hnp.arrays(np.float64, 5, elements=entries))
def test_quantising_moves_no_entry_by_more_than_half_a_step(flat: NDArray[np.float64]) -> None:
    for value, step in zip(flat.tolist(), quantise(flat).tolist(), strict=True):
        assert abs(Fraction(value) - Fraction(step, 2**STEP_BITS)) <= Fraction(
            1, 2 ** (STEP_BITS + 1)
        )


@given(hnp.arrays(np.float64, 5, elements=entries))
def test_quantised_entries_come_back_exactly(flat: NDArray[np.float64]) -> None:
    steps = quantise(flat)
    assert quantise(dequantise(steps)).tolist() == steps.tolist()
    for value, step in zip(dequantise(steps).tolist(), steps.tolist(), strict=True):
        assert Fraction(value) == Fraction(step, 2**STEP_BITS)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (np.nextafter(8.0, 9.0), "entry-too-large"),
        (np.nextafter(-8.0, -9.0), "entry-too-large"),
        (np.nan, "not-finite"),
        (np.inf, "not-finite"),
        (-np.inf, "not-finite"),
    ],
)
def test_an_entry_beyond_the_bound_is_refused(value: float, code: str) -> None:
    with pytest.raises(MismatchError) as refused:
        quantise(np.array([0.0, value]))
    assert refused.value.code == code


def test_an_entry_on_the_bound_is_taken() -> None:
    assert quantise(np.array([8.0, -8.0])).tolist() == [LARGEST_STEPS, -LARGEST_STEPS]


@pytest.mark.parametrize("weight", [0, -1, LARGEST_WEIGHT + 1, 10**12])
def test_a_weight_out_of_bounds_is_refused(weight: int) -> None:
    with pytest.raises(MismatchError, match="a weight is 1 to 4096"):
        PartialSum.empty(SIZE).add(np.zeros(SIZE, np.int64), weight)


def test_more_total_weight_than_the_bound_is_refused_and_the_bound_itself_is_not() -> None:
    nothing = np.zeros(SIZE, np.int64)
    below = PartialSum(nothing, LARGEST_TOTAL_WEIGHT - 1, 1)
    assert below.add(nothing, 1).weight == LARGEST_TOTAL_WEIGHT
    with pytest.raises(MismatchError, match="weights add up") as refused:
        below.add(nothing, 2)
    assert refused.value.code == "sum-bound"


@pytest.mark.parametrize("sign", [1, -1])
def test_the_extreme_sum_that_the_bounds_allow_does_not_overflow(sign: int) -> None:
    extreme = np.full(SIZE, sign * LARGEST_STEPS, np.int64)
    half = PartialSum(extreme * (LARGEST_TOTAL_WEIGHT // 2), LARGEST_TOTAL_WEIGHT // 2, 1)
    full = half + half
    assert full.total.tolist() == [sign * LARGEST_STEPS * LARGEST_TOTAL_WEIGHT] * SIZE
    assert full.mean().tolist() == extreme.tolist()
    one = PartialSum.empty(SIZE).add(extreme, LARGEST_WEIGHT)
    assert one.total.tolist() == [sign * LARGEST_STEPS * LARGEST_WEIGHT] * SIZE


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(MismatchError) as refused:
        PartialSum.empty(SIZE).mean()
    assert refused.value.code == "empty-sum"


def test_sums_of_different_sizes_do_not_add() -> None:
    with pytest.raises(MismatchError) as refused:
        PartialSum.empty(2) + PartialSum.empty(3)
    assert refused.value.code == "layout-size"


def test_adding_leaves_the_sums_that_are_added_alone() -> None:
    one = PartialSum.empty(SIZE).add(np.ones(SIZE, np.int64), 2)
    one + one
    one.add(np.ones(SIZE, np.int64), 5)
    assert (one.total.tolist(), one.weight, one.count) == ([2] * SIZE, 2, 1)


@pytest.mark.parametrize("kind", ["svd", "tt", "random"])
def test_the_mean_of_states_is_the_mean_of_merged_kernels(kind: str) -> None:
    random = np.random.default_rng(3)
    kernel = random.normal(size=(8, 5, 3))
    frames = {"conv": make_frame(kernel, kind, 2, groups=1, layer="conv")}  # type: ignore[arg-type]
    layout = Layout.of({"conv.core": (8, 2)})
    weights = [1, 37, 4096]
    steps = [quantise(random.normal(size=layout.size)) for _ in weights]

    def served(flat: NDArray[np.float64]) -> NDArray[np.float64]:
        merged = merge({"conv.weight": kernel}, frames, CoreState.from_flat(layout, flat))
        return merged["conv.weight"]  # type: ignore[no-any-return]

    added = PartialSum.empty(layout.size)
    for one, weight in zip(steps, weights, strict=True):
        added = added.add(one, weight)
    of_kernels = sum(
        served(dequantise(one)) * weight for one, weight in zip(steps, weights, strict=True)
    ) / sum(weights)
    exact = added.total.astype(np.float64) / added.weight * 2.0**-STEP_BITS
    of_states = served(exact)
    scale = np.abs(of_kernels).max()
    assert np.abs(of_states - of_kernels).max() / scale < 1e-12
    # The mean that a release takes is rounded once more, by half a step of each entry.
    suffix = np.abs(frames["conv"].suffix(kernel)).sum(axis=1).max()
    rounded = served(dequantise(added.mean()))
    assert np.abs(rounded - of_kernels).max() <= 2.0**-33 * suffix + 1e-12 * scale
