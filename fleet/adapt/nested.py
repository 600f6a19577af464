"""Nested ranks: a weak device trains the first columns of the cores and sends zeros in the rest.

Frames of all kinds but ``tt`` nest: the frame of rank r' is the first r' directions of the frame
of rank r. So a state of narrow cores is a point of the wide state's space, with zeros behind, and
the mean over a mixed fleet stays the mean of the kernels; columns that few devices train move less.

A device that starts at zero narrows the state: it trains r'-column cores and keeps r' channels. One
that starts at a release whose other columns are not zero needs them in the forward pass; it
attaches the wide state and limits the gradient.

Laws (tests/fleet/adapt/test_nested.py): ``widened ∘ narrowed`` is a projection; merging a widened
state gives the bits that merging the narrow one gives; what a limited gradient moves, and what it
does not, is what narrowing its change keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fleet.adapt.attach import Attached
from fleet.adapt.frames import Frame
from fleet.adapt.learned_frames import Ranks
from fleet.adapt.state import CORE_SUFFIX, CoreState, Layout
from fleet.errors import FrameError, MismatchError

__all__ = ["limit_columns", "narrowed", "nested_frames", "widened"]


def narrowed(state: CoreState, ranks: Ranks) -> CoreState:
    """Return the first columns of each core; dense entries stay as they are.

    Whether the frames nest is not to be seen in a state: attaching or merging refuses a narrow core
    of a ``tt`` frame, and :func:`nested_frames` does so beforehand.

    Args:
        state: Cores ``LAYER.core (O, r)`` and dense deltas.
        ranks: Columns to keep: one number, which leaves cores that have no more as they are, or a
            number by layer. A layer with 0 columns loses its entry; one that a mapping does not
            name keeps all.

    Raises:
        MismatchError: ``unknown-entry`` when a mapping names a layer without a core.
        FrameError: ``rank-too-large`` or ``rank-too-small``.
    """
    cores = {name.removesuffix(CORE_SUFFIX): name for name in state.arrays if _is_core(name)}
    widths = {layer: state.arrays[name].shape[1] for layer, name in cores.items()}
    kept = _columns(widths, ranks)
    arrays: dict[str, NDArray[Any]] = dict(state.arrays)
    for layer, name in cores.items():
        if kept[layer]:
            arrays[name] = state.arrays[name][:, : kept[layer]]
        else:
            del arrays[name]
    return CoreState.of(arrays)


def widened(state: CoreState, layout: Layout) -> CoreState:
    """Return the state in a wider layout, with zeros in the columns and cores that it lacks.

    Args:
        state: A narrow state, see :func:`narrowed`.
        layout: The fleet's layout.

    Raises:
        MismatchError: ``not-nested`` when an entry is not the first columns of the layout's, or
            when a dense entry is missing.
    """
    shapes = dict(layout.entries)
    for name, array in state.arrays.items():
        wanted = shapes.get(name)
        fits = array.shape == wanted or (
            wanted is not None
            and _is_core(name)
            and array.ndim == len(wanted) == 2
            and (array.shape[0] == wanted[0] and array.shape[1] <= wanted[1])
        )
        if not fits:
            raise MismatchError(
                "not-nested",
                f"the entry {name} {array.shape} is no part of the layout's {wanted}",
                "The state belongs to another base, method or rank.",
            )
    dtype = next((a.dtype for a in state.arrays.values()), np.dtype(np.float32))
    arrays = {}
    for name, shape in layout.entries:
        if name not in state.arrays and not _is_core(name):
            raise MismatchError("not-nested", f"the state lacks the dense entry {name}", "")
        arrays[name] = np.zeros(shape, dtype)
        if name in state.arrays:
            array = state.arrays[name]
            arrays[name][tuple(slice(0, size) for size in array.shape)] = array
    return CoreState.of(arrays)


def nested_frames(frames: Mapping[str, Frame], ranks: Ranks) -> dict[str, Frame]:
    """Return the frames that a narrow state belongs to.

    Args:
        frames: Frame by layer name.
        ranks: As for :func:`narrowed`.

    Raises:
        FrameError: ``frame-not-nested`` for ``tt`` frames, ``rank-too-large`` or
            ``rank-too-small``.
        MismatchError: ``unknown-entry`` when a mapping names a layer without a frame.
    """
    kept = _columns({layer: frame.rank for layer, frame in frames.items()}, ranks)
    return {n: frame.truncated(kept[n]) for n, frame in frames.items() if kept[n]}


def limit_columns(attached: Attached, ranks: Ranks) -> None:
    """Let training move only the first columns of each core, in place.

    Gradients of the other columns become zero, so SGD and Adam without weight decay leave them at
    their start and the device's delta has zeros there.

    Args:
        attached: A wide state, attached plainly or leanly.
        ranks: As for :func:`narrowed`.

    Raises:
        FrameError: ``rank-too-large`` or ``rank-too-small``.
    """
    cores = {n.removesuffix(CORE_SUFFIX): p for n, p in attached.parameters.items() if _is_core(n)}
    kept = _columns({layer: core.shape[1] for layer, core in cores.items()}, ranks)
    for layer, core in cores.items():
        if kept[layer] < core.shape[1]:
            mask = torch.zeros_like(core)
            mask[:, : kept[layer]] = 1.0
            core.register_hook(mask.mul)  # type: ignore[no-untyped-call]


def _columns(widths: Mapping[str, int], ranks: Ranks) -> dict[str, int]:
    """Return the columns that each core keeps."""
    if isinstance(ranks, int):
        _check(ranks, ranks, "every layer")
        return {layer: min(ranks, width) for layer, width in widths.items()}
    for layer, rank in ranks.items():
        if layer not in widths:
            raise MismatchError(
                "unknown-entry", f"{layer} has no core; with one: {', '.join(widths)}", ""
            )
        _check(rank, widths[layer], layer)
    return {layer: ranks.get(layer, width) for layer, width in widths.items()}


def _check(rank: int, width: int, layer: str) -> None:
    if rank < 0:
        raise FrameError("rank-too-small", f"{layer}: a core has 0 columns or more, not {rank}", "")
    if rank > width:
        raise FrameError(
            "rank-too-large", f"{layer}: this core has rank {width}; rank {rank} was asked for"
        )


def _is_core(name: str) -> bool:
    return name.endswith(CORE_SUFFIX)
