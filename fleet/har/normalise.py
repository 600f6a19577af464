"""Per-channel standardisation, fitted on the source people and shipped with the base model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.errors import MismatchError
from fleet.har.dataset import DataSet
from fleet.har.partition import pool

__all__ = ["Normalisation", "fit"]

CHUNK_WINDOWS = 1024


@dataclass(frozen=True, eq=False)
class Normalisation:
    """Mean and standard deviation of each channel, in the channel's unit.

    Attributes:
        mean: float32 ``[c]``.
        std: float32 ``[c]``, positive.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def apply(self, x: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Standardise windows.

        Args:
            x: floating ``[n, c, t]`` in physical units.

        Returns:
            float32 ``[n, c, t]``, a new array.

        Raises:
            MismatchError: ``channel-count`` when x has another number of channels.
        """
        if x.ndim != 3 or x.shape[1] != len(self.mean):
            raise MismatchError(
                "channel-count",
                f"this normalisation is for [n, {len(self.mean)}, t], not {list(x.shape)}",
                "Use data with the channels that the base model was trained on.",
            )
        centred = x.astype(np.float32) - self.mean[None, :, None]
        return (centred / self.std[None, :, None]).astype(np.float32)


def fit(dataset: DataSet, subjects: Iterable[int]) -> Normalisation:
    """Fit mean and standard deviation on all windows of ``subjects``.

    The sums are exact (integers), so neither chunk size nor order nor machine changes the result.
    A channel that varies by less than one quantisation step counts as constant: its standard
    deviation is set to one step, so that it becomes 0 rather than amplified noise.

    Raises:
        DataError: ``unknown-subject`` or, for no people, ``no-windows``.
    """
    rows = pool(dataset, subjects)
    channels = len(dataset.channels)
    sums, squares = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for start in range(0, len(rows), CHUNK_WINDOWS):
        # int64 holds 2^33 samples of squares below 2^30: far more than MAX_UNPACKED_BYTES of int16.
        steps = dataset.x[rows[start : start + CHUNK_WINDOWS]].astype(np.int64)
        sums += steps.sum(axis=(0, 2))
        squares += (steps * steps).sum(axis=(0, 2))
    count = len(rows) * dataset.window
    mean = [float(Fraction(int(total), count)) for total in sums]
    variance = [
        float(Fraction(count * int(square) - int(total) ** 2, count**2))
        for total, square in zip(sums, squares, strict=True)
    ]
    scale = dataset.scale.astype(np.float64)
    std = np.maximum(np.sqrt(variance), 1.0) * scale
    return Normalisation((np.array(mean) * scale).astype(np.float32), std.astype(np.float32))
