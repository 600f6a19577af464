"""How far a recomputed release is from the one that was recorded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleet.federate.releases import Release

__all__ = ["distance"]


def distance(start: Release, recorded: Release, made: Release) -> dict[str, float | None]:
    """Compare two releases that were made from the same one.

    Args:
        start: What both were made from.
        recorded: The one that the round made.
        made: The one that a replay made.

    Returns:
        ``largest``: the largest absolute difference of any entry; ``cosine``: between the two steps
        from ``start``, since the cores themselves share nearly everything; None where a step is 0.
    """
    before, one, two = (_flat(each) for each in (start, recorded, made))
    first, second = one - before, two - before
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    cosine = float(first @ second) / lengths if lengths > 0 else None
    return {
        "largest": float(np.abs(one - two).max(initial=0.0)),
        # Rounding may carry it past the ends.
        "cosine": None if cosine is None else min(1.0, max(-1.0, cosine)),
    }


def _flat(release: Release) -> NDArray[np.float64]:
    arrays = [array.astype(np.float64).ravel() for array in release.state.arrays.values()]
    return np.concatenate(arrays) if arrays else np.zeros(0)
