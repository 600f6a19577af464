"""Exact aggregation: a weighted mean in int64 fixed point, the same bits in every order.

Floating-point sums depend on arrival order (two orders of 50 updates differ in 83 % of the
entries). Here each entry is quantised once, on admission, to a multiple of 2⁻³²; sums of integers
are exact, so order, batching, partial sums and restarts cannot change the result. The division is
one exact rational rounding, half to even.

Bounds, checked before adding: |entry| ≤ 8, weight ≤ 4,096, sum of weights ≤ 2²⁷; so a sum stays
below 2^(35 + 27) < 2⁶³. Many states are added in tiles, see ``fleet/federate/tiles.py``.

Laws (tests/fleet/federate/test_aggregate.py): the sum is commutative and associative; partial sums
add; the mean equals the rational mean rounded half to even; the mean of states is the mean of
merged kernels; quantisation moves no entry by more than 2⁻³³.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.errors import MismatchError
from fleet.federate.tiles import TILE_UPDATES, TiledSum

__all__ = [
    "LARGEST_ENTRY",
    "LARGEST_TOTAL_WEIGHT",
    "LARGEST_WEIGHT",
    "PartialSum",
    "dequantise",
    "quantise",
    "rounded",
]

STEP_BITS = 32
LARGEST_ENTRY = 8.0
LARGEST_WEIGHT = 4096
LARGEST_TOTAL_WEIGHT = 2**27
# Beside this number float64 has steps of 2⁻³²: adding it rounds an entry to one, half to even, and
# the sum's bits count the steps from the number's own.
_ROUNDER = 1.5 * 2.0 ** (52 - STEP_BITS)
_ROUNDER_BITS = np.array(_ROUNDER).view(np.int64)


def quantise(flat: NDArray[np.floating]) -> NDArray[np.int64]:
    """Round each entry to a multiple of 2⁻³² (half to even), as int64.

    Args:
        flat: Finite entries of magnitude at most :data:`LARGEST_ENTRY`.

    Raises:
        MismatchError: ``entry-too-large`` or ``not-finite``.
    """
    if not np.isfinite(flat).all():
        raise MismatchError("not-finite", "a state with NaN or infinity cannot be aggregated")
    largest = float(np.max(np.abs(flat), initial=0.0))
    if largest > LARGEST_ENTRY:
        raise MismatchError(
            "entry-too-large", f"an entry of {largest:.3g} exceeds the bound of {LARGEST_ENTRY:g}"
        )
    return rounded(flat)


def rounded(flat: NDArray[np.floating]) -> NDArray[np.int64]:
    """Do what :func:`quantise` does to entries that were checked."""
    near = flat.astype(np.float64)
    near += _ROUNDER
    steps: NDArray[np.int64] = near.view(np.int64)
    steps -= _ROUNDER_BITS
    return steps


def dequantise(steps: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the float64 values of quantised entries; exact, since |steps| ≤ 2³⁵."""
    return steps.astype(np.float64) * 2.0**-STEP_BITS


@dataclass(frozen=True, eq=False)
class PartialSum:
    """A weighted sum of quantised states; partial sums of disjoint devices add exactly.

    Args:
        total: Σ weight·entry, int64 ``(size,)``.
        weight: Σ weight.
        count: Number of states in the sum.
    """

    total: NDArray[np.int64]
    weight: int
    count: int

    @classmethod
    def empty(cls, size: int) -> PartialSum:
        """Return the sum of nothing."""
        return cls(np.zeros(size, np.int64), 0, 0)

    @classmethod
    def of(cls, states: Iterable[tuple[NDArray[np.int64], int]], size: int) -> PartialSum:
        """Return the sum of states ``(steps, weight)``, as :meth:`add` after :meth:`add` finds it.

        Args:
            states: Steps ``(size,)``, of magnitude at most 2³⁵ as :func:`quantise` makes them, and
                weights; drawn once, and held by 64 at a time.
            size: Entries of each.

        Raises:
            MismatchError: ``sum-bound`` or ``layout-size``.
        """
        return cls._of(states, TiledSum(size), size)

    @classmethod
    def of_entries(cls, states: Iterable[tuple[NDArray[np.float32], int]], size: int) -> PartialSum:
        """Return what :meth:`of` returns of these states' steps, quantised on the way.

        Args:
            states: Entries ``(size,)`` that were checked as :func:`quantise` checks them, and
                weights; drawn once, and held by 64 at a time.
            size: Entries of each.

        Raises:
            MismatchError: ``sum-bound`` or ``layout-size``.
        """
        return cls._of(states, TiledSum(size, 2.0**STEP_BITS), size)

    @classmethod
    def _of(
        cls, states: Iterable[tuple[NDArray[Any], int]], result: TiledSum, size: int
    ) -> PartialSum:
        weight = count = 0
        left = iter(states)
        while batch := list(islice(left, TILE_UPDATES)):
            updates, weights = zip(*batch, strict=True)
            weight += _checked(updates, weights, weight, size)
            count += len(batch)
            result.add(updates, weights)
        return cls(result.total(), weight, count)

    def add(self, steps: NDArray[np.int64], weight: int) -> PartialSum:
        """Return the sum with one more state.

        Raises:
            MismatchError: ``sum-bound`` or ``layout-size``.
        """
        _check_weight(weight)
        return self + PartialSum(steps * np.int64(weight), weight, 1)

    def __add__(self, other: PartialSum) -> PartialSum:
        _check_shapes(self.total.shape, other.total.shape)
        weight = self.weight + other.weight
        _check_sum(weight)
        return PartialSum(self.total + other.total, weight, self.count + other.count)

    def mean(self) -> NDArray[np.int64]:
        """Return the mean in steps of 2⁻³², each entry rounded once, half to even.

        Raises:
            MismatchError: ``empty-sum`` when nothing was added.
        """
        if self.weight == 0:
            raise MismatchError("empty-sum", "the mean of no updates is not defined")
        quotient, remainder = np.divmod(self.total, self.weight)
        twice = 2 * remainder
        up = (twice > self.weight) | ((twice == self.weight) & (quotient & 1 == 1))
        nearest: NDArray[np.int64] = quotient + up
        return nearest


def total(parts: Iterable[PartialSum], size: int) -> PartialSum:
    """Add partial sums of disjoint devices."""
    result = PartialSum.empty(size)
    for part in parts:
        result = result + part
    return result


def _checked(
    updates: tuple[NDArray[Any], ...], weights: tuple[int, ...], before: int, size: int
) -> int:
    """Return the weight of a batch; ``before`` is that of the states before it."""
    weight = sum(weights)
    plausible = min(weights) >= 1 and max(weights) <= LARGEST_WEIGHT
    alike = {each.shape for each in updates} == {(size,)}
    if plausible and alike and before + weight <= LARGEST_TOTAL_WEIGHT:
        return weight
    # Told as of the first state that breaks a rule.
    for each, one in zip(updates, weights, strict=True):
        _check_weight(one)
        _check_shapes((size,), each.shape)
        before += one
        _check_sum(before)
    return weight


def _check_weight(weight: int) -> None:
    if not 1 <= weight <= LARGEST_WEIGHT:
        raise MismatchError("sum-bound", f"a weight is 1 to {LARGEST_WEIGHT} windows, not {weight}")


def _check_sum(weight: int) -> None:
    if weight > LARGEST_TOTAL_WEIGHT:
        raise MismatchError(
            "sum-bound", f"weights add up to {weight}, beyond {LARGEST_TOTAL_WEIGHT}"
        )


def _check_shapes(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    if one != other:
        raise MismatchError("layout-size", f"sums of {one} and {other} do not add")
