"""Personal cores: a private core on the shared frame, added to the fleet's.

A device serves ``merge(base, release + personal)``. The personal core is never sent, outlives every
release, and without it the device serves the release's exact digest. In language models the idea is
that of a global and a local adapter, e.g. FedDPA (arXiv:2403.19211); here both live in one space,
so that their sum still merges into dense kernels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.base import Base
from fleet.adapt.frames import Frame
from fleet.adapt.network import folded_network, parameters_of
from fleet.adapt.state import CORE_SUFFIX, CoreState, Layout

__all__ = ["held_back", "re_expressed"]

HOLD_BACK_EVERY = 5


def held_back(sources: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which labelled windows a personal core is judged on, and so never trained on.

    A window is on one side for good, whatever comes with it and however often it comes: one of
    :data:`HOLD_BACK_EVERY` by a hash of its number.

    Args:
        sources: Which windows, ``(n,)`` int64: the same number for one that comes again.
    """
    # Fibonacci hashing (Knuth, TAOCP 3, section 6.4): consecutive numbers spread evenly.
    mixed = sources.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((mixed >> np.uint64(32)) % np.uint64(HOLD_BACK_EVERY) == 0)


def re_expressed(personal: CoreState, old: Base, new: Base, layout: Layout) -> CoreState:
    """Return a personal core in the frames of a rebased base, as near as they reach.

    Of each layer the least-squares ``argmin ‖C·S - C'·S'‖``; of dense entries the common part.

    Args:
        personal: In the old base's frames.
        old: The base before.
        new: The base after.
        layout: The new base's, of what is trained.
    """
    kernels = [parameters_of(folded_network(base)) for base in (old, new)]
    arrays: dict[str, NDArray[np.float32]] = {}
    for name, shape in layout.entries:
        before = personal.arrays.get(name)
        made = np.zeros(shape, np.float32)
        layer = name.removesuffix(CORE_SUFFIX)
        if before is not None and name.endswith(CORE_SUFFIX) and layer in new.frames:
            spanned = _span(old.frames, layer, kernels[0], before.shape[1])
            wanted = _span(new.frames, layer, kernels[1], shape[1])
            made = _projected(before.astype(np.float64), spanned, wanted).astype(np.float32)
        elif before is not None and before.ndim == made.ndim:
            common = tuple(slice(min(pair)) for pair in zip(before.shape, made.shape, strict=True))
            made[common] = before[common]
        arrays[name] = made
    return CoreState.of(arrays)


def _span(
    frames: Mapping[str, Frame], layer: str, kernels: Mapping[str, NDArray[np.float32]], rank: int
) -> NDArray[np.float64]:
    """Return the rows that a layer's core spans: float64 ``(groups, rank, inputs·taps)``."""
    frame = frames[layer].truncated(rank)
    suffix = frame.suffix(kernels[f"{layer}.weight"])
    return np.asarray(suffix, np.float64).reshape(frame.groups, rank, -1)


def _projected(
    core: NDArray[np.float64], old: NDArray[np.float64], new: NDArray[np.float64]
) -> NDArray[np.float64]:
    parts = []
    for part, before, after in zip(np.split(core, len(new)), old, new, strict=True):
        wanted = part @ before
        parts.append(np.linalg.lstsq(after.T, wanted.T, rcond=None)[0].T)
    return np.concatenate(parts)
