"""Bytes that a forward pass keeps for the backward pass: counted from what is held, not computed.

On the hand-written backward pass the network reports what it saved; everywhere else autograd's
saved-tensor hooks see every tensor that a node keeps. Parameters and buffers are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from fleet.adapt.lean.module import LeanNetwork

__all__ = ["saved_bytes"]


def saved_bytes(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> int:
    """Run one forward pass and the loss, and return the bytes kept for the backward pass.

    Args:
        network: Ready to train; nothing in it changes but train-mode statistics.
        x: Windows ``(batch, channels, window)``.
        y: Labels ``(batch,)`` int64.
    """
    if isinstance(network, LeanNetwork):
        network.saved_bytes = 0  # and stays so where all of it falls back to plain autograd
    with _counting(network) as counted:
        functional.cross_entropy(network(x), y)
    # Autograd sees of a lean network its parameters alone, and what the loss keeps.
    own = network.saved_bytes if isinstance(network, LeanNetwork) else 0
    return sum(counted.values()) + own


@contextmanager
def _counting(network: nn.Module) -> Iterator[dict[int, int]]:
    """Count the bytes of storages that autograd keeps, each once, the network's own left out."""
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no address is used twice while we count

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
