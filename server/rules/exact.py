"""The rules that are exact: no bit of their result depends on order, threads or machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.federate.admission import Admitted
from fleet.federate.aggregate import PartialSum, dequantise
from fleet.federate.releases import Release
from server.rules.memory import Memory
from server.rules.protocol import Closed

__all__ = ["Clip", "Mean", "clipped", "exact_mean", "norm_of"]


def exact_mean(updates: Mapping[str, Admitted], size: int) -> NDArray[np.int64]:
    """Return the weighted mean of updates in fixed point, int64 ``(size,)``.

    Raises:
        MismatchError: ``empty-sum``, ``sum-bound`` or ``layout-size``.
    """
    sent = ((each.entries, each.weight) for each in updates.values())
    return PartialSum.of_entries(sent, size).mean()


@dataclass(frozen=True)
class Mean:
    """The weighted mean; the default."""

    def close(self, release: Release, updates: Mapping[str, Admitted], memory: Memory) -> Closed:
        """Aggregate a round, see :class:`server.rules.protocol.Rule`."""
        return Closed(exact_mean(updates, release.state.layout.size))


@dataclass(frozen=True)
class Clip:
    """The weighted mean of updates that are cut to a norm, each on its own.

    One device moves a release by at most ``norm`` times its share of the weights.

    Args:
        norm: Largest Euclidean norm of a delta.
    """

    norm: float

    def close(self, release: Release, updates: Mapping[str, Admitted], memory: Memory) -> Closed:
        """Aggregate a round, see :class:`server.rules.protocol.Rule`."""
        cut: list[str] = []

        def within(device: str) -> NDArray[np.int64]:
            steps = clipped(updates[device].steps, self.norm)
            if steps is not updates[device].steps:
                cut.append(device)
            return steps

        each = ((within(device), update.weight) for device, update in updates.items())
        total = PartialSum.of(each, release.state.layout.size)
        return Closed(total.mean(), record={"clipped": sorted(cut)})


def norm_of(steps: NDArray[np.int64]) -> float:
    """Return the Euclidean norm of a quantised delta, the same bits on every machine.

    NumPy's own sums may add in another order on another processor; ``fsum`` rounds once.
    """
    return math.sqrt(math.fsum(np.square(dequantise(steps))))


def clipped(steps: NDArray[np.int64], norm: float) -> NDArray[np.int64]:
    """Return a delta cut to a norm, and itself where it is no longer.

    Entries are rounded towards zero, so that rounding cannot carry it over the norm again.

    >>> clipped(np.array([3 << 32, 4 << 32]), 2.5) / 2**32
    array([1.5, 2. ])
    """
    length = norm_of(steps)
    if length <= norm:
        return steps
    shorter: NDArray[np.int64] = np.trunc(steps * (norm / length)).astype(np.int64)
    return shorter
