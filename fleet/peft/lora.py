"""Convolutional LoRA as HF PEFT has it: a k-tap convolution down to r channels, a 1×1 up.

``y = conv(x, K0) + s · conv1×1(conv(x, A), B)`` with ``A (r, I, *k)`` random and ``B (O, r)`` zero,
both trained, ``s = α/r``; merged, ``ΔK = s · B·A``. (Hu et al., arXiv 2106.09685; the convolutional
form is that of the ``peft`` package.) The product of two trained factors is not linear in what is
trained: averaging A and B over devices is not averaging kernels, which is why cores exist.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from fleet.adapt.attach import adaptable_layers
from fleet.errors import ModelError

__all__ = ["LoRAConvolution", "attach_lora", "merge_lora"]


class LoRAConvolution(nn.Module):
    """A frozen convolution with a trained low-rank branch.

    Args:
        layer: ``nn.Conv1d`` or ``nn.Conv2d`` with one group.
        rank: r.
        alpha: α; the branch is scaled by ``α/r``.
    """

    def __init__(self, layer: nn.Conv1d | nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        if layer.groups != 1:
            raise ModelError(
                "lora-groups",
                f"LoRA has no merge for a convolution of {layer.groups} groups",
                "Use cores, or leave the layer out.",
            )
        self.layer = layer
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(rank, *layer.weight.shape[1:]))
        self.up = nn.Parameter(torch.zeros(layer.out_channels, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the dense layer's output, moved by the branch."""
        narrow: torch.Tensor = self.layer._conv_forward(x, self.down, None)
        wide = torch.matmul(self.up, narrow.flatten(2)).view(narrow.shape[0], -1, *narrow.shape[2:])
        out: torch.Tensor = self.layer(x) + self.scale * wide
        return out

    def delta(self) -> torch.Tensor:
        """Return ``ΔK (O, I, *k)``."""
        product: torch.Tensor = torch.tensordot(self.up, self.down, dims=1)
        return self.scale * product


def attach_lora(network: nn.Module, rank: int, *, alpha: float | None = None) -> nn.Module:
    """Copy a network and put a LoRA branch on every adaptable convolution; the rest is frozen.

    Args:
        network: Folded network; not changed.
        rank: r of every branch.
        alpha: α; r by default, so that the branch is not scaled.

    Raises:
        ModelError: ``lora-groups`` for grouped convolutions.
    """
    module = copy.deepcopy(network).requires_grad_(False).eval()
    for name, layer in adaptable_layers(module)[0].items():
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
        parent, _, leaf = name.rpartition(".")
        branch = LoRAConvolution(layer, rank, float(rank if alpha is None else alpha))
        setattr(module.get_submodule(parent), leaf, branch)
    return module


def merge_lora(network: nn.Module) -> nn.Module:
    """Return a copy with every branch merged into its dense kernel."""
    module = copy.deepcopy(network)
    for name, branch in list(module.named_modules()):
        if isinstance(branch, LoRAConvolution):
            with torch.no_grad():
                branch.layer.weight += branch.delta()
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, branch.layer)
    return module
