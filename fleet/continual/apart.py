"""How far a base is from what a release serves: the measure of whether it serves the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.base import Base
from fleet.adapt.network import folded_network, parameters_of
from fleet.errors import MismatchError

__all__ = ["apart", "relative_difference"]


def apart(base: Base, merged: Mapping[str, NDArray[Any]]) -> float:
    """Return how far a base's folded parameters are from merged ones.

    Args:
        base: The base, without a core.
        merged: All parameters of a folded network under a release, see
            :func:`fleet.federate.served.merge_release`.

    Returns:
        The largest difference of an entry, relative to the largest merged entry of its array (to 1
        where that is all zero); a base that was made by :func:`fleet.continual.growth.rebased` has
        at most :data:`fleet.continual.growth.ROUNDING`. NaN where an entry is none.

    Raises:
        MismatchError: ``other-network`` when names or shapes differ.
    """
    own = parameters_of(folded_network(base))
    for name in sorted(own.keys() | merged.keys()):
        one, two = (p[name].shape if name in p else None for p in (own, merged))
        if one != two:
            raise MismatchError(
                "other-network",
                f"the base's {name} is {one or 'not there'}, the release's {two or 'not there'}",
                "Compare a base with a release of the same architecture and classes.",
            )
    # Not Python's max: a NaN has to come through.
    return float(np.max([relative_difference(own[name], merged[name]) for name in own]))


def relative_difference(values: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Return the largest difference of an entry, relative to the largest wanted one.

    Args:
        values: Numbers of any shape.
        wanted: Likewise, of the same shape.

    Returns:
        To 1 where all that is wanted is zero; NaN where an entry is none.
    """
    exact = wanted.astype(np.float64)
    scale = float(np.abs(exact).max(initial=0.0)) or 1.0
    return float(np.abs(values - exact).max(initial=0.0)) / scale
