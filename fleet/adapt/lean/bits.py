"""Bits: a boolean tensor at an eighth of its bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["Bits"]


@dataclass(frozen=True, eq=False)
class Bits:
    """One bit per entry of a boolean tensor, big-endian within each byte.

    Args:
        shape: Shape of the tensor.
        order: Its dimensions from the outermost in memory to the innermost: bits lie as the
            entries do, since anything else would cost a transposition each way.
        packed: uint8 ``(⌈entries / 8⌉,)``; a NumPy array on the CPU, where packing is then as cheap
            as a copy, a tensor on any other device.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    packed: NDArray[np.uint8] | torch.Tensor

    @classmethod
    def of(cls, mask: torch.Tensor) -> Bits:
        """Pack a boolean tensor of any shape and strides."""
        order = tuple(sorted(range(mask.dim()), key=mask.stride, reverse=True))
        shape, laid = tuple(mask.shape), mask.permute(order)
        if mask.device.type == "cpu":
            return cls(shape, order, np.packbits(laid.numpy()))
        return cls(shape, order, pack(laid))

    @classmethod
    def positive(cls, x: torch.Tensor) -> Bits:
        """Pack where ``x`` is above zero; NumPy compares several times faster than PyTorch."""
        if x.device.type != "cpu":
            return cls.of(x > 0)
        order = tuple(sorted(range(x.dim()), key=x.stride, reverse=True))
        return cls(tuple(x.shape), order, np.packbits(x.detach().permute(order).numpy() > 0))

    def factors(self) -> torch.Tensor:
        """Return the mask as uint8 zeros and ones, on its device and in its order in memory."""
        entries = math.prod(self.shape)
        if isinstance(self.packed, torch.Tensor):
            flat = unpack(self.packed, entries)
        else:
            flat = torch.from_numpy(np.unpackbits(self.packed, count=entries))
        laid = flat.view([self.shape[dim] for dim in self.order])
        return laid.permute(sorted(range(len(self.order)), key=self.order.__getitem__))

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return int(self.packed.nbytes)


def pack(mask: torch.Tensor) -> torch.Tensor:
    """Pack booleans into uint8 with tensor operations alone, on any device."""
    flat = mask.reshape(-1).to(torch.uint8)
    octets = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (octets << _shifts(mask.device)).sum(dim=1, dtype=torch.uint8)


def unpack(packed: torch.Tensor, entries: int) -> torch.Tensor:
    """Return ``(entries,)`` uint8 zeros and ones: the inverse of :func:`pack`."""
    return ((packed.unsqueeze(1) >> _shifts(packed.device)) & 1).view(-1)[:entries]


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
