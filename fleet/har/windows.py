"""From a recording to windows: decimate to the common rate, then slide."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.errors import InputError

__all__ = ["STANDARD_GRAVITY", "decimate", "segment"]

STANDARD_GRAVITY = 9.80665  # m/s² per g


def segment(
    samples: NDArray[np.floating[Any]], window: int, stride: int
) -> NDArray[np.floating[Any]]:
    """Cut a recording into overlapping windows; an incomplete last one is dropped.

    Args:
        samples: floating ``[T, c]``, evenly spaced in time.
        window: Samples per window.
        stride: Samples between the starts of neighbours.

    Returns:
        ``[n, c, window]`` of the same dtype, ``n = 1 + (T - window) // stride`` or 0; a new array.

    Raises:
        InputError: ``bad-window`` unless ``1 <= stride <= window`` and samples has two axes.

    >>> segment(np.arange(5.0)[:, None], window=3, stride=2)[:, 0].tolist()
    [[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]]
    """
    if samples.ndim != 2:
        raise InputError("bad-window", f"samples must be [T, c], not of shape {samples.shape}")
    if not 1 <= stride <= window:
        raise InputError("bad-window", f"need 1 <= stride <= window, not {stride} and {window}")
    if len(samples) < window:
        return np.empty((0, samples.shape[1], window), dtype=samples.dtype)
    views = np.lib.stride_tricks.sliding_window_view(samples, window, axis=0)
    return np.ascontiguousarray(views[::stride])


def decimate(samples: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Lower the sampling rate by a whole factor, after a zero-phase low-pass filter.

    A Hamming-windowed sinc of ``20 * factor + 1`` taps with its cut-off at the new Nyquist rate:
    the published ``usc_had`` was made like this. The signal counts as zero beyond its ends, so the
    first and last ten new samples of a recording are pulled towards zero.

    Args:
        samples: float64 ``[T, c]``.
        factor: Old rate / new rate.

    Returns:
        float64 ``[ceil(T / factor), c]``.
    """
    if factor < 1:
        raise InputError("bad-rate", f"the factor must be at least 1, not {factor}")
    if factor == 1 or len(samples) == 0:
        return np.array(samples[::factor], dtype=np.float64)
    half = 10 * factor
    taps = np.sinc(np.arange(-half, half + 1) / factor) * np.hamming(2 * half + 1)
    taps /= taps.sum()
    filtered = [np.convolve(channel, taps)[half : half + len(channel)] for channel in samples.T]
    slower: NDArray[np.float64] = np.stack(filtered, axis=1)[::factor]
    return slower
