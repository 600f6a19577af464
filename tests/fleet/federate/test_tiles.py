from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet.federate.aggregate import (
    LARGEST_ENTRY,
    LARGEST_WEIGHT,
    STEP_BITS,
    PartialSum,
    quantise,
    rounded,
)
from fleet.federate.tiles import LARGEST_EXACT_WEIGHT, TILE_ENTRIES, TILE_UPDATES

LARGEST_STEPS = int(LARGEST_ENTRY) << STEP_BITS
Updates = list[tuple[NDArray[np.int64], int]]


def naively_rounded(flat: NDArray[np.floating]) -> NDArray[np.int64]:
    """The quantiser as it was first written: scale, round, convert."""
    return np.rint(flat.astype(np.float64) * 2.0**STEP_BITS).astype(np.int64)


def naive_sum(updates: Updates, size: int) -> tuple[list[int], int, int]:
    """The sum as it was first written: one multiplication and one addition per update."""
    total, part = np.zeros(size, np.int64), np.empty(size, np.int64)
    for steps, weight in updates:
        np.multiply(steps, weight, out=part)
        np.add(total, part, out=total)
    return total.tolist(), sum(weight for _, weight in updates), len(updates)


def told(found: PartialSum) -> tuple[list[int], int, int]:
    return found.total.tolist(), found.weight, found.count


def drawn(seed: int, count: int, size: int, heavy: bool) -> list[tuple[NDArray[np.float32], int]]:
    """Entries of all magnitudes, many beside a tie, some on the bound; weights light or heavy."""
    random = np.random.default_rng(seed)
    scales = 2.0 ** random.integers(-40, 4, (count, size))
    flats = np.clip(random.normal(size=(count, size)) * scales, -8, 8).astype(np.float32)
    ties = random.random((count, size)) < 0.3
    flats[ties] = ((random.integers(-9, 9, (count, size)) + 0.5) * 2.0**-32)[ties]
    flats[random.random((count, size)) < 0.1] = LARGEST_ENTRY
    low = LARGEST_WEIGHT - 2 if heavy else 1
    return [(flat, int(random.integers(low, LARGEST_WEIGHT + 1))) for flat in flats]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 3 * TILE_UPDATES), st.integers(0, 9), st.booleans())
def test_sums_in_tiles_are_the_naive_sum_to_the_bit(
    seed: int, count: int, size: int, heavy: bool
) -> None:
    entries = drawn(seed, count, size, heavy)
    steps = [(naively_rounded(flat), weight) for flat, weight in entries]
    assert told(PartialSum.of(steps, size)) == naive_sum(steps, size)
    assert told(PartialSum.of_entries(entries, size)) == naive_sum(steps, size)


@pytest.mark.parametrize("size", [TILE_ENTRIES - 1, TILE_ENTRIES, 2 * TILE_ENTRIES + 3])
def test_long_updates_are_cut_without_a_trace(size: int) -> None:
    entries = drawn(size, TILE_UPDATES + 1, size, heavy=False)
    steps = [(naively_rounded(flat), weight) for flat, weight in entries]
    assert told(PartialSum.of(iter(steps), size)) == naive_sum(steps, size)
    assert told(PartialSum.of_entries(iter(entries), size)) == naive_sum(steps, size)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_full_tile_of_the_largest_odd_steps_and_weights_loses_no_bit(sign: int) -> None:
    # One step below the bound keeps the lowest bit of every product and partial sum in play.
    steps = [
        (np.array([sign * (LARGEST_STEPS - 1), sign * LARGEST_STEPS, sign]), LARGEST_WEIGHT - odd)
        for odd in (np.arange(3 * TILE_UPDATES) % 2).tolist()
    ]
    wanted = [sum(int(each[i]) * weight for each, weight in steps) for i in range(3)]
    assert PartialSum.of(steps, 3).total.tolist() == wanted


def test_a_tile_of_any_weights_stays_within_what_float64_holds() -> None:
    assert TILE_UPDATES * LARGEST_WEIGHT <= LARGEST_EXACT_WEIGHT
    assert LARGEST_EXACT_WEIGHT * LARGEST_STEPS <= 2**53


def test_many_light_updates_are_carried_before_float64_ends() -> None:
    steps = [(np.array([LARGEST_STEPS - 1]), LARGEST_WEIGHT // 2 + 1)] * (5 * TILE_UPDATES)
    assert told(PartialSum.of(steps, 1)) == naive_sum(steps, 1)


@given(st.integers(0, 2**32))
def test_the_quick_quantiser_is_the_naive_one_to_the_bit(seed: int) -> None:
    for flat, _ in drawn(seed, 4, 50, heavy=False):
        for precise in (flat, np.clip(flat * np.pi, -8, 8)):
            assert rounded(precise).tolist() == naively_rounded(precise).tolist()
            assert quantise(precise).tolist() == naively_rounded(precise).tolist()


def test_quantising_leaves_its_argument_alone() -> None:
    flat = np.array([0.5, -0.5])
    rounded(flat)
    assert flat.tolist() == [0.5, -0.5]


def test_a_sum_of_entries_leaves_the_updates_alone() -> None:
    entries = drawn(0, 3, 5, heavy=False)
    before = [flat.copy() for flat, _ in entries]
    PartialSum.of_entries(entries, 5)
    assert all((flat == old).all() for (flat, _), old in zip(entries, before, strict=True))
