"""Layout: activations with their channels last in memory.

oneDNN's convolutions then need no reordering on either side, a layer's windows and positions are
the rows of one matrix, and a core is two thin matrix products with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["channels_last", "matrix", "new_like"]


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return ``x (batch, channels, ...)`` with its channels last in memory; itself where it is."""
    if x.dim() <= 2:
        return x.contiguous()
    # Every view is a call, and a network has hundreds; mostly there is nothing to do.
    return x if _is_laid_out(x) else x.movedim(1, -1).contiguous().movedim(-1, 1)


def matrix(x: torch.Tensor, groups: int) -> torch.Tensor:
    """View ``x (batch, channels, ...)``, channels last, as ``(groups, rows, channels/groups)``.

    A row is one position of one window.
    """
    channels = x.shape[1]
    width = channels // groups
    if _is_laid_out(x):
        rows = x.numel() // channels if channels else 0
        return x.as_strided((groups, rows, width), (width, channels, 1))
    found = x.movedim(1, -1).view(-1, groups, width)
    return found.transpose(0, 1)


def _is_laid_out(x: torch.Tensor) -> bool:
    """Tell whether channels are last in memory and nothing lies between; no for what is empty."""
    shape, stride = x.shape, x.stride()
    if stride[1] != 1:
        return False
    expected = shape[1]
    for dim in range(len(shape) - 1, 1, -1):
        if stride[dim] != expected:
            return False
        expected *= shape[dim]
    return stride[0] == expected and expected > 0


def new_like(grad: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return zeros of a shape with their channels last, of the dtype and on the device given."""
    batch, channels, *rest = shape
    return grad.new_zeros((batch, *rest, channels)).movedim(-1, 1)
