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
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x.contiguous()


def matrix(x: torch.Tensor, groups: int) -> torch.Tensor:
    """View ``x (batch, channels, ...)``, channels last, as ``(groups, rows, channels/groups)``.

    A row is one position of one window.
    """
    rows = x.movedim(1, -1).view(-1, groups, x.shape[1] // groups)
    return rows.transpose(0, 1)


def new_like(grad: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return zeros of a shape with their channels last, of the dtype and on the device given."""
    batch, channels, *rest = shape
    return grad.new_zeros((batch, *rest, channels)).movedim(-1, 1)
