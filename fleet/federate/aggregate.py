"""Exact aggregation: a weighted mean in int64 fixed point, the same bits in every order.

Floating-point sums depend on arrival order (two orders of 50 updates differ in 83 % of the
entries). Here each entry is quantised once, on admission, to a multiple of 2⁻³²; sums of integers
are exact, so order, batching, partial sums and restarts cannot change the result. The division is
one exact rational rounding, half to even.

Bounds, checked before adding: |entry| ≤ 8, weight ≤ 4,096, sum of weights ≤ 2²⁷; so a sum stays
below 2^(35 + 27) < 2⁶³.

Laws (tests/fleet/federate/test_aggregate.py): the sum is commutative and associative; partial sums
add; the mean equals the rational mean rounded half to even; the mean of states is the mean of
merged kernels; quantisation moves no entry by more than 2⁻³³.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.errors import MismatchError

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
    scaled = flat.astype(np.float64)
    scaled *= 2.0**STEP_BITS
    return np.rint(scaled, out=scaled).astype(np.int64)


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
            states: Steps ``(size,)`` and weights; drawn once, none is held.
            size: Entries of each.

        Raises:
            MismatchError: ``sum-bound`` or ``layout-size``.
        """
        # Local, so it may grow in place.
        total, part = np.zeros(size, np.int64), np.empty(size, np.int64)
        sum_of_weights = count = 0
        for steps, weight in states:
            _check_weight(weight)
            _check_shapes(total.shape, steps.shape)
            sum_of_weights += weight
            _check_sum(sum_of_weights)
            np.multiply(steps, weight, out=part)
            np.add(total, part, out=total)
            count += 1
        return cls(total, sum_of_weights, count)

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
