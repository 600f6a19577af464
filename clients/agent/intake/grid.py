"""Uneven samples to an even grid, piece by piece, with the same result however they are cut.

A grid starts at a segment's first sample. A sample that lies within ``ALIGNED`` of a period around
a grid point is taken as it is, bit for bit; else the two samples around the point are interpolated
linearly. That is right for rates near the base's (crystals are off by parts in ten thousand). A
source that is clearly denser would alias: what it holds above half the base's rate folds down. For
it every point is the mean of the samples within half a period, a mild low-pass (a first zero at the
base's rate, 4 dB down at half of it); for a sharp one record at the base's rate, or decimate a
recording with ``fleet.har.windows.decimate`` first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALIGNED", "Segment", "extend"]

ALIGNED = 0.01
"""Share of a period within which a sample counts as lying on the grid."""

Array = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Segment:
    """An unbroken stretch of samples, as far as it has come.

    Attributes:
        origin_s: Time of its first sample.
        made: How many grid points were given out.
        times: float64 ``(h,)``, samples that later points may need; at least the last one.
        values: float64 ``(h, c)``.
    """

    origin_s: float
    made: int
    times: Array
    values: Array

    @classmethod
    def starting(cls, times: Array, values: Array) -> Segment:
        """Begin at the first of some samples."""
        return cls(float(times[0]), 0, times[:0], values[:0])


def extend(
    segment: Segment, times: Array, values: Array, rate_hz: float, *, averaged: bool
) -> tuple[Segment, Array]:
    """Add samples to a segment and return the grid points that they complete.

    Args:
        segment: What came before.
        times: float64 ``(n,)``, ascending, later than the segment's; n is at least 1.
        values: float64 ``(n, c)``.
        rate_hz: Rate of the grid.
        averaged: Take means instead of interpolating.

    Returns:
        The longer segment, and float64 ``(m, c)``: the grid points from ``segment.made`` on.
    """
    times = np.concatenate([segment.times, times])
    values = np.concatenate([segment.values, values])
    near = ALIGNED / rate_hz
    # The range of a mean is moved by a hair: in a source of a whole multiple of the rate samples
    # would fall on its ends, in or out as rounding has it.
    left, right = (0.5 / rate_hz + near, 0.5 / rate_hz - near) if averaged else (near, -near)
    last = float(times[-1])
    # Points enough that rounding here cannot lose one; the exact test follows.
    most = int((last - segment.origin_s) * rate_hz) + 3
    grid = segment.origin_s + np.arange(segment.made, most, dtype=np.float64) / rate_hz
    # A mean needs a sample beyond its range as a proof that none is missing.
    grid = grid[: int(np.count_nonzero(grid + right <= last))]
    first, end = np.searchsorted(times, grid - left), np.searchsorted(times, grid + right)
    if averaged:
        points = _means(times, values, grid, first, end)
    else:
        points = _lines(times, values, grid, first, near)
    made = segment.made + len(grid)
    needed = int(np.searchsorted(times, segment.origin_s + made / rate_hz - left))
    start = max(needed - 1, 0)
    held = times[start:].copy(), values[start:].copy()  # a view would hold all of it in memory
    return Segment(segment.origin_s, made, *held), points


def _lines(times: Array, values: Array, grid: Array, after: Rows, near: float) -> Array:
    """Return the samples on the grid, and straight lines between the others."""
    points = values[after]
    off = np.flatnonzero(times[after] > grid + near)
    if len(off):
        points[off] = _between(times, values, grid[off], after[off])
    return points


def _means(times: Array, values: Array, grid: Array, first: Rows, end: Rows) -> Array:
    """Return means of the samples from ``first`` to before ``end``."""
    points = np.empty((len(grid), values.shape[1]))
    count = end - first
    # Points of the same count together: a sum over a fixed axis does not depend on its neighbours.
    for size in np.unique(count[count > 0]):
        rows = np.flatnonzero(count == size)
        total = values[first[rows]].copy()
        for offset in range(1, int(size)):
            total += values[first[rows] + offset]
        points[rows] = total / size
    empty = np.flatnonzero(count == 0)
    if len(empty):
        points[empty] = _between(times, values, grid[empty], first[empty])
    return points


def _between(times: Array, values: Array, at: Array, after: Rows) -> Array:
    """Interpolate linearly between the samples ``after - 1`` and ``after``."""
    before = after - 1
    weight = (at - times[before]) / (times[after] - times[before])
    line: Array = values[before] + (values[after] - values[before]) * weight[:, None]
    return line
