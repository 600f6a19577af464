"""How replay holds samples: int8 with a step per window and channel, half or single precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["decoded", "encoded"]

LARGEST_STEP = 127


def encoded(x: NDArray[np.float32], encoding: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Encode windows.

    Args:
        x: float32 ``(n, c, t)``, finite; within ±65504 for float16.
        encoding: ``int8``, ``float16`` or ``float32``.

    Returns:
        ``(n, c, t)`` of that type and steps, float32 ``(n, c)``, or ``(n, 0)`` where there are
        none. A value of int8 comes back within half a step, a step is a 127th of the largest
        absolute value of its window and channel.
    """
    if encoding != "int8":
        return x.astype(encoding), np.zeros((len(x), 0), np.float32)
    largest = np.abs(x).max(axis=2, initial=0.0)
    steps = np.maximum(largest / np.float32(LARGEST_STEP), np.finfo(np.float32).tiny)
    steps = steps.astype(np.float32)
    whole = np.clip(np.rint(x / steps[:, :, None]), -LARGEST_STEP, LARGEST_STEP)
    return whole.astype(np.int8), steps


def decoded(stored: NDArray[Any], steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 ``(n, c, t)`` of what :func:`encoded` made, a new array."""
    x = stored.astype(np.float32)
    if stored.dtype == np.int8 and len(stored):
        x *= steps[:, :, None]
    return x
