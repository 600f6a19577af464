"""Work: one device's data and batch order, and what several devices need for one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fleet.adapt.state import CoreState

__all__ = ["DeviceWork", "StepBatch", "step_batch"]


@dataclass(frozen=True, eq=False)
class DeviceWork:
    """What one device trains on, in which order, and from where.

    Args:
        x: Normalised windows ``(n, channels, window)``; devices may share one tensor.
        y: Labels ``(n,)`` int64.
        order: Index arrays of one window or more each, one per step; what
            :func:`fleet.adapt.train.batches` yields.
        rows: ``(m,)`` int64: where the device's own windows lie in ``x`` and ``y``, which ``order``
            then counts by; None where all of them are its own.
        ahead: How far from the network's start the device begins; None for at the start.
        maps: Scale and shift ``(channels,)`` that the device has of its own, by the place of an
            affine map in the network; where it has none, the network's.
        pulls: Strength of L2 to the network's start by entry, not negative, of its layout; beside
            the pull that all devices have.
    """

    x: torch.Tensor
    y: torch.Tensor
    order: Sequence[NDArray[np.int64]]
    rows: NDArray[np.int64] | None = None
    ahead: CoreState | None = None
    maps: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    pulls: CoreState | None = None

    @property
    def visits(self) -> int:
        """Windows over all steps."""
        return sum(len(index) for index in self.order)

    def at(self, step: int, size: int) -> torch.Tensor:
        """Return where the windows of a step lie, filled up to ``size`` with the last of them.

        A repeated window is finite in every layer where the device's own are, so its weight of zero
        leaves a gradient of zero; the network's answer to an empty window may not be.
        """
        index = self.order[step]
        filled = np.concatenate([index, np.repeat(index[-1:], size - len(index))])
        chosen = filled if self.rows is None else self.rows[filled]
        return torch.from_numpy(chosen).to(self.x.device)


class StepBatch(NamedTuple):
    """One step of several devices.

    Args:
        x: Windows ``(devices, b, channels, window)``.
        y: Labels ``(devices, b)`` int64.
        weights: ``(devices, b)``: one over the device's own windows, 0 for what fills up.
    """

    x: torch.Tensor
    y: torch.Tensor
    weights: torch.Tensor


def step_batch(
    works: Sequence[DeviceWork], step: int, *, dtype: torch.dtype, place: torch.device
) -> StepBatch:
    """Gather a step of devices that all have one; b is the largest of their batches.

    Args:
        works: Devices, in the order of the stacks.
        step: Step, from 0.
        dtype: Dtype of windows and weights.
        place: Torch device to gather on.
    """
    own = [len(work.order[step]) for work in works]
    size = max(own)
    first = works[0].x
    x = torch.empty((len(works), size, *first.shape[1:]), dtype=dtype, device=place)
    y = torch.empty((len(works), size), dtype=torch.int64, device=place)
    for device, work in enumerate(works):
        at = work.at(step, size)
        if work.x.dtype == dtype and work.x.device == x.device:
            torch.index_select(work.x, 0, at, out=x[device])
        else:
            x[device] = work.x[at]
        y[device] = work.y[at]
    counts = torch.tensor(own, device=place).unsqueeze(1)
    real = torch.arange(size, device=place) < counts
    return StepBatch(x, y, real.to(dtype) / counts)
