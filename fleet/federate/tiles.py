"""Weighted sums of many updates at once: exact in float64, whatever adds the products.

A step is at most 2³⁵ in magnitude, see ``fleet/federate/aggregate.py``. As long as the weights of a
sum add up to at most 2¹⁸, each product and each partial sum is an integer of magnitude at most 2⁵³,
which float64 holds exactly: neither the order of the additions nor a fused multiply-add can change
a bit. A tile of 64 updates keeps to that with any weights; sums of more weight are carried in
int64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["TILE_UPDATES", "TiledSum"]

TILE_UPDATES = 64
"""With 64 weights of at most 4,096 a tile's weights add up to at most 2¹⁸."""
# Entries of an update that are worked on together: a tile of them takes 4 MiB and stays in a cache.
TILE_ENTRIES = 8192
LARGEST_EXACT_WEIGHT = 2**18


class TiledSum:
    """A growing weighted sum; what it is given has been checked.

    Args:
        size: Entries of each update.
        scale: What makes steps of entries, which are rounded half to even; None for updates that
            are steps.
    """

    def __init__(self, size: int, scale: float | None = None) -> None:
        width = min(size, TILE_ENTRIES)
        self._scale = scale
        self._tile = np.empty(TILE_UPDATES * width)
        self._part = np.empty(width)
        self._near = np.zeros(size)
        self._near_weight = 0
        self._total = np.zeros(size, np.int64)

    def add(self, updates: Sequence[NDArray[np.generic]], weights: Sequence[int]) -> None:
        """Add up to :data:`TILE_UPDATES` updates ``(size,)`` with a weight each."""
        weight = sum(weights)
        if self._near_weight + weight > LARGEST_EXACT_WEIGHT:
            self._carry()
        self._near_weight += weight
        by = np.array(weights, np.float64)
        size = len(self._near)
        for start in range(0, size, TILE_ENTRIES):
            stop = min(start + TILE_ENTRIES, size)
            # A slice per update costs more than adding a small one does.
            cut = updates if stop - start == size else [each[start:stop] for each in updates]
            part = self._part[: stop - start]
            # As fast as BLAS, whose threads would fight for a server's few cores.
            np.einsum("i,ij->j", by, self._filled(cut, stop - start), out=part)
            self._near[start:stop] += part

    def total(self) -> NDArray[np.int64]:
        """Return the sum of everything added so far, int64 ``(size,)``."""
        self._carry()
        total: NDArray[np.int64] = self._total.copy()
        return total

    def _filled(self, updates: Sequence[NDArray[np.generic]], width: int) -> NDArray[np.float64]:
        flat = self._tile[: len(updates) * width]
        np.concatenate(updates, out=flat)
        if self._scale is not None:
            flat *= self._scale
            np.rint(flat, out=flat)
        return flat.reshape(len(updates), width)

    def _carry(self) -> None:
        self._total += self._near.astype(np.int64)
        self._near[:] = 0.0
        self._near_weight = 0
