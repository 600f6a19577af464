"""Exhaustion: how much of what the fleet's loss still asks for lies outside the frames.

A core moves a kernel within the row space of its frame's suffix S. Of a kernel's gradient
``G (O, I/g·Πk)`` it can follow ``G·P``, with P the projection on that space. The share

    1 - ‖G·P‖² / ‖G‖²

is what another frame could use and this one cannot. A device sends the two sums of each layer,
never a gradient. The share is large for any frame of small rank, and tends to 1 where the cores
have converged, so a bound on it is to be set by what a fleet shows when it is well.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fleet.adapt.core_layer import single_thread
from fleet.adapt.frames import Frame, numerical_rank

__all__ = ["Energy", "Streak", "gradient_energy", "outside"]

Energy: TypeAlias = Mapping[str, tuple[float, float]]
"""By layer: the energy of a gradient outside the frame, and all of it."""

# Windows per forward and backward pass.
MICRO_BATCH = 64


def gradient_energy(
    served: nn.Module,
    frames: Mapping[str, Frame],
    kernels: Mapping[str, NDArray[np.float32]],
    x: NDArray[np.float32],
    y: NDArray[np.int64],
) -> dict[str, tuple[float, float]]:
    """Return the energy of the gradient of the mean cross-entropy over windows, by layer.

    Args:
        served: Dense network that is served; not changed.
        frames: Frame by layer name.
        kernels: The base's folded parameters, which frames of kind ``svd`` read their suffix from.
        x: Windows ``(n, channels, window)``, one or more.
        y: Labels ``(n,)``.
    """
    network = copy.deepcopy(served).double().requires_grad_(False).eval()
    own = {name: network.get_parameter(f"{name}.weight") for name in frames}
    for kernel in own.values():
        kernel.requires_grad_(True)
    with single_thread():
        for at in range(0, len(y), MICRO_BATCH):
            part, labels = (torch.from_numpy(each[at : at + MICRO_BATCH]) for each in (x, y))
            loss = functional.cross_entropy(network(part.double()), labels, reduction="sum")
            (loss / len(y)).backward()  # type: ignore[no-untyped-call]
        found = {}
        for name, frame in frames.items():
            gradient = own[name].grad
            rows = np.zeros(own[name].shape) if gradient is None else gradient.numpy()
            found[name] = _split(rows, frame.suffix(kernels[f"{name}.weight"]))
    return found


def outside(devices: Sequence[Energy]) -> tuple[float, dict[str, float]]:
    """Return the share of the devices' gradient energy outside the frames: of all, and by layer.

    The mean over devices of either sum, divided; 0 where there is no gradient.
    """
    layers = sorted({name for device in devices for name in device})
    sums = {
        name: np.sum([device[name] for device in devices if name in device], axis=0)
        for name in layers
    }
    whole = np.sum([sums[name] for name in layers], axis=0) if layers else np.zeros(2)
    return _share(whole), {name: _share(sums[name]) for name in layers}


@dataclass(frozen=True)
class Streak:
    """For how long the share has been above a bound.

    Args:
        in_a_row: Rounds, up to the last one.
        since: Rounds since the frames were made anew; None where they never were.
    """

    in_a_row: int = 0
    since: int | None = None

    def after(self, share: float, *, above: float, rounds: int, apart: int) -> tuple[Streak, bool]:
        """Take one round; return the streak after it, and whether new frames are due.

        Args:
            share: Of the round.
            above: The bound.
            rounds: So many in a row above it make new frames due.
            apart: Fewest rounds from new frames to the next ones.
        """
        row = self.in_a_row + 1 if share > above else 0
        since = None if self.since is None else self.since + 1
        if row >= rounds and (since is None or since >= apart):
            return Streak(0, 0), True
        return Streak(row, since), False


def _split(gradient: NDArray[np.float64], suffix: NDArray[np.float64]) -> tuple[float, float]:
    """Return the energy outside the row space of ``suffix (groups, r, I/g, *k)``, and all of it."""
    groups, rank = suffix.shape[:2]
    rows = gradient.reshape(groups, len(gradient) // groups, -1)
    inside = 0.0
    for own, spanned in zip(rows, suffix.reshape(groups, rank, -1), strict=True):
        _, sigma, right = np.linalg.svd(spanned, full_matrices=False)
        basis = right[: numerical_rank(sigma)]
        inside += float(np.square(own @ basis.T).sum())
    whole = float(np.square(rows).sum())
    return max(0.0, whole - inside), whole


def _share(sums: NDArray[np.float64]) -> float:
    return float(sums[0] / sums[1]) if sums[1] > 0 else 0.0
