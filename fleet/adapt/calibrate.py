"""The frames of a whole network: made layer by layer, then calibrated on source windows.

Calibration gives every bottleneck channel unit RMS on the windows. It leaves the space that cores
reach as it is, and makes one learning rate suit all layers, kinds and ranks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.core_layer import CoreLayer, adaptable_layers, replace, single_thread
from fleet.adapt.frames import LEARNED_KINDS, Frame, FrameKind, largest_rank, make_frame
from fleet.adapt.learned_frames import (
    Ranks,
    Sources,
    gradient_grams,
    learned_frame,
    people_grams,
    ranks_by_layer,
)
from fleet.errors import FrameError

__all__ = ["FrameScale", "capped_ranks", "make_frames"]

FrameScale = Literal["response", "none"]

# Windows per forward pass while frames are calibrated.
CALIBRATION_BATCH = 256
# A direction is scaled as if its RMS were at least this fraction of its layer's largest.
QUIET_DIRECTION = 0.05


def make_frames(
    folded: nn.Module,
    kind: FrameKind,
    rank: Ranks,
    windows: torch.Tensor | None = None,
    *,
    sources: Sources | None = None,
    scale: FrameScale = "response",
    seed: int = 0,
) -> dict[str, Frame]:
    """Make the frames of the adaptable layers.

    Args:
        folded: Folded network.
        kind: One of :data:`fleet.adapt.frames.FRAME_KINDS`.
        rank: Columns of each core: one number for all adaptable layers, or a number by layer.
            Layers that a mapping does not name, or gives 0, get no frame and carry no core.
        windows: Source windows ``(n, channels, window)`` float32 to calibrate on. Without them the
            frames are as the kernels or the sources give them.
        sources: One batch ``(x, y)`` per source person and simulated shift; the learned kinds need
            them and the others do not look at them.
        scale: ``response`` scales each direction to a bottleneck channel of unit RMS on
            ``windows``; ``none`` leaves the frames as they come, to measure what that is worth.
        seed: Root of the batch order in which ``people`` frames fine-tune.

    Raises:
        FrameError: What :func:`fleet.adapt.frames.make_frame` and
            :mod:`fleet.adapt.learned_frames` raise; ``frame-needs-data`` for a learned kind without
            sources, ``unknown-layer`` for the rank of a layer that is not adaptable.
    """
    ranks = ranks_by_layer(folded, rank)
    with single_thread():
        grams = _grams(folded, kind, ranks, sources, seed)
        frames = {name: _maker(folded, name, kind, grams)(wide) for name, wide in ranks.items()}
    return frames if windows is None or scale == "none" else _calibrated(folded, frames, windows)


def capped_ranks(
    folded: nn.Module,
    kind: FrameKind,
    rank: int,
    *,
    sources: Sources | None = None,
    seed: int = 0,
) -> dict[str, int]:
    """Return, for every adaptable layer, the largest rank up to ``rank`` that a frame can have.

    The kernel's shape and numerical rank cap it, and where equal singular values straddle the cut
    it moves down to the next gap of the spectrum. It is 0 where no rank is left, e.g. for a zero
    kernel. So one sweep of ranks runs on every backbone: ``make_frames`` takes what this returns.

    Args:
        folded: Folded network.
        kind: Frame kind.
        rank: The most columns, at least 1.
        sources: As for :func:`make_frames`. A learned kind's spectra are then learned here, once
            more; without sources only the shapes cap it.
        seed: As for :func:`make_frames`.

    Raises:
        FrameError: ``rank-too-small``.
    """
    if rank < 1:
        raise FrameError("rank-too-small", f"a core has 1 column or more, not {rank}", "")
    most = {
        name: min(rank, largest_rank(_kernel(folded, name).shape, kind, _groups(folded, name)))
        for name in adaptable_layers(folded)[0]
    }
    if kind in LEARNED_KINDS and sources is None:
        return most
    with single_thread():
        grams = _grams(folded, kind, most, sources, seed)
        return {n: _largest(_maker(folded, n, kind, grams), wide) for n, wide in most.items()}


def _largest(make: Callable[[int], Frame], most: int) -> int:
    """Return the largest rank up to ``most`` that can be made: the maker itself is the rule."""
    for rank in range(most, 0, -1):
        try:
            make(rank)
        except FrameError as error:
            if error.code not in ("rank-deficient", "degenerate-spectrum"):
                raise
        else:
            return rank
    return 0


def _grams(
    folded: nn.Module,
    kind: FrameKind,
    ranks: Mapping[str, int],
    sources: Sources | None,
    seed: int,
) -> dict[str, NDArray[np.float64]]:
    """Learn the Gram matrices of a learned kind; none for the others."""
    if kind not in LEARNED_KINDS:
        return {}
    if sources is None:
        raise FrameError(
            "frame-needs-data",
            f"a {kind} frame is learned from source people's windows, and none were given",
            "Give make_frames the sources, or choose svd, tt or random.",
        )
    if kind == "people":
        return people_grams(folded, list(ranks), sources, seed=seed)
    return gradient_grams(folded, list(ranks), sources)


def _maker(
    folded: nn.Module, name: str, kind: FrameKind, grams: Mapping[str, NDArray[np.float64]]
) -> Callable[[int], Frame]:
    """Return the function from a rank to the frame of one layer."""
    kernel, groups = _kernel(folded, name), _groups(folded, name)
    if name in grams:
        learned = partial(learned_frame, grams[name], kind, shape=kernel.shape, groups=groups)
        return partial(learned, layer=name)
    return lambda rank: make_frame(kernel, kind, rank, groups=groups, layer=name)


def _kernel(folded: nn.Module, name: str) -> NDArray[np.float32]:
    kernel: NDArray[np.float32] = folded.get_parameter(f"{name}.weight").detach().numpy()
    return kernel


def _groups(folded: nn.Module, name: str) -> int:
    return int(folded.get_submodule(name).groups)  # type: ignore[arg-type]


def _calibrated(
    folded: nn.Module, frames: Mapping[str, Frame], windows: torch.Tensor
) -> dict[str, Frame]:
    """Scale each direction to a bottleneck channel of unit RMS on ``windows``."""
    network = copy.deepcopy(folded).to(torch.float32).eval()
    squares = {name: _Square() for name in frames}
    for name, frame in frames.items():
        layer = network.get_submodule(name)
        core = CoreLayer(layer, frame, torch.zeros(len(layer.get_parameter("weight")), frame.rank))
        core.register_forward_hook(squares[name])
        replace(network, name, core)
    with torch.inference_mode(), single_thread():
        for start in range(0, len(windows), CALIBRATION_BATCH):
            network(windows[start : start + CALIBRATION_BATCH])
    return {name: frame.scaled(squares[name].factors(frame)) for name, frame in frames.items()}


class _Square:
    """A forward hook that accumulates the mean square of a core layer's bottleneck, in float64."""

    def __init__(self) -> None:
        self.total = np.zeros(())
        self.count = 0

    def __call__(self, layer: CoreLayer, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        z = layer.bottleneck(inputs[0], layer.rows(inputs[0])).double()
        self.total = self.total + z.square().sum(dim=(0, 3)).numpy()
        self.count += z.shape[0] * z.shape[3]

    def factors(self, frame: Frame) -> NDArray[np.float64]:
        """Return 1/RMS by direction; directions that hardly respond are not blown up."""
        mean: NDArray[np.float64] = self.total / max(self.count, 1)
        if frame.kind != "svd":
            mean = mean.mean(axis=0)
        rms = np.sqrt(mean)
        largest = float(rms.max(initial=0.0))
        return 1.0 / np.maximum(rms, QUIET_DIRECTION * largest) if largest else np.ones_like(rms)
