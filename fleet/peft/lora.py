"""Convolutional LoRA as HF PEFT has it: a k-tap convolution down to r channels, a 1×1 up.

``y = conv(x, K0) + s · conv1×1(conv(x, A), B)`` with ``A (r, I, *k)`` random and ``B (O, r)`` zero,
both trained, ``s = α/r``; merged, ``ΔK = s · B·A``. (Hu et al., arXiv 2106.09685; the convolutional
form is that of the ``peft`` package.) The product of two trained factors is not linear in what is
trained: averaging A and B over devices is not averaging kernels, which is why cores exist.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import nn

from fleet.adapt.attach import adaptable_layers
from fleet.adapt.fold import Convolution
from fleet.errors import ModelError
from fleet.peft.tuner import Start, Tuned, Tuner

__all__ = [
    "Branched",
    "ConvolutionLayer",
    "KernelBranch",
    "LoRAConvolution",
    "attach_lora",
    "lora",
    "merge_lora",
    "with_branches",
]

ConvolutionLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d


class KernelBranch(nn.Module, ABC):
    """A frozen convolution whose kernel is moved by low-rank factors.

    Args:
        layer: ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d`` with one group.
        rank: r.
        alpha: α; what the factors make is scaled by ``α/r``.

    Raises:
        ModelError: ``lora-groups`` for a grouped convolution, ``rank-too-small`` below 1.
    """

    title = "LoRA"

    def __init__(self, layer: ConvolutionLayer, rank: int, alpha: float) -> None:
        super().__init__()
        if layer.groups != 1:
            raise ModelError(
                "lora-groups",
                f"{self.title} has no merge for a convolution of {layer.groups} groups",
                "Use cores, or leave the layer out.",
            )
        if rank < 1:
            raise ModelError(
                "rank-too-small", f"{self.title} has factors of rank 1 or more, not {rank}"
            )
        self.layer = layer
        self.scale = alpha / rank

    @abstractmethod
    def kernel(self) -> torch.Tensor:
        """Return the dense kernel ``(O, I, *k)`` of the layer and its branch together."""


class LoRAConvolution(KernelBranch):
    """A frozen convolution with a trained low-rank branch.

    Args:
        layer: Convolution with one group.
        rank: r.
        alpha: α; the branch is scaled by ``α/r``.
        generator: Source of the initial A; the global one by default.
    """

    def __init__(
        self,
        layer: ConvolutionLayer,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(layer, rank, alpha)
        down = torch.empty(rank, *layer.weight.shape[1:])
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
        self.down = nn.Parameter(down.to(layer.weight))
        self.up = nn.Parameter(layer.weight.new_zeros(layer.out_channels, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the dense layer's output, moved by the branch."""
        out: torch.Tensor = self.layer(x) + self.branch(x)
        return out

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        """Return the branch's part of the output, ``(batch, O, ...)``."""
        narrow: torch.Tensor = self.layer._conv_forward(x, self.down, None)
        wide = torch.matmul(self.up, narrow.flatten(2)).view(narrow.shape[0], -1, *narrow.shape[2:])
        return self.scale * wide

    def delta(self) -> torch.Tensor:
        """Return ``ΔK (O, I, *k)``."""
        product: torch.Tensor = torch.tensordot(self.up, self.down, dims=1)
        return self.scale * product

    def kernel(self) -> torch.Tensor:
        """Return ``K0 + ΔK (O, I, *k)``."""
        return self.layer.weight + self.delta()


def with_branches(
    network: nn.Module, branch: Callable[[ConvolutionLayer], KernelBranch]
) -> nn.Module:
    """Copy a network, put a branch on every adaptable convolution and freeze the rest.

    Args:
        network: Folded network; not changed.
        branch: From a convolution of the copy to what takes its place, in the layers' order.

    Raises:
        ModelError: Whatever ``branch`` refuses; ``nothing-to-train`` without a convolution.
    """
    module = copy.deepcopy(network).requires_grad_(False).eval()
    layers, _ = adaptable_layers(module)
    if not layers:
        raise ModelError(
            "nothing-to-train", f"{type(network).__name__} has no convolution to put a branch on"
        )
    for name, layer in layers.items():
        assert isinstance(layer, Convolution)
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, branch(layer))
    return module


def attach_lora(
    network: nn.Module, rank: int, *, alpha: float | None = None, seed: int | None = None
) -> nn.Module:
    """Copy a network and put a LoRA branch on every adaptable convolution; the rest is frozen.

    Args:
        network: Folded network; not changed.
        rank: r of every branch.
        alpha: α; r by default, so that the branch is not scaled.
        seed: Of the initial A; without it they come from the global random state.

    Raises:
        ModelError: ``lora-groups`` for grouped convolutions, ``rank-too-small``,
            ``nothing-to-train``.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    scaled = float(rank if alpha is None else alpha)
    return with_branches(network, lambda layer: LoRAConvolution(layer, rank, scaled, generator))


def merge_lora(network: nn.Module) -> nn.Module:
    """Return a copy with every branch merged into its dense kernel."""
    module = copy.deepcopy(network)
    for name, branch in list(module.named_modules()):
        if isinstance(branch, KernelBranch):
            with torch.no_grad():
                branch.layer.weight.copy_(branch.kernel())
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, branch.layer)
    return module


class Branched(Tuned):
    """A folded network with a :class:`KernelBranch` on every adaptable convolution."""

    def merge(self) -> nn.Module:
        """Return a copy with every branch in its kernel."""
        return merge_lora(self.module).requires_grad_(False)


def _attach(start: Start) -> Tuned:
    return Branched(attach_lora(start.folded, start.rank, seed=start.seed))


lora = Tuner(
    name="lora",
    summary="two low-rank factors per convolution in HF PEFT's form; the rest frozen",
    attach=_attach,
    ranked=True,
)
