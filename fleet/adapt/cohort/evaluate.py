"""Evaluation of one network on the windows of many devices, in batches across devices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fleet.adapt.train import predict

__all__ = ["evaluate_cohort"]


def evaluate_cohort(
    network: torch.nn.Module, windows: Sequence[torch.Tensor], *, batch: int = 256
) -> list[NDArray[np.int64]]:
    """Return what one network, that of a release, says of each device's windows.

    Args:
        network: The merged network in evaluation mode.
        windows: By device ``(n, channels, window)``; n may be 0.
        batch: Windows that run together, of however many devices.

    Returns:
        Most likely classes ``(n,)`` int64 by device.
    """
    found: list[NDArray[np.int64]] = []
    for part in _filling(windows, batch):
        predicted = predict(network, torch.cat(part), batch=batch)
        found += np.split(predicted, np.cumsum([len(x) for x in part])[:-1])
    return found


def _filling(windows: Sequence[torch.Tensor], batch: int) -> Iterator[list[torch.Tensor]]:
    """Yield runs of devices that fill a batch, so that no more than these are ever copied."""
    part: list[torch.Tensor] = []
    filled = 0
    for x in windows:
        part.append(x)
        filled += len(x)
        if filled >= batch:
            yield part
            part, filled = [], 0
    if part:
        yield part
