"""Kernels that move by what is trained: ``K = K0 + ΔK(θ)``, merged by writing K down.

Methods of this form differ in ΔK alone, so each one gives a :class:`Branch` per convolution.
Attaching, the rule that the start is not changed, and merging from the immutable K0 are here.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import nn

from fleet.adapt.attach import adaptable_layers
from fleet.adapt.fold import Convolution
from fleet.errors import ModelError
from fleet.peft.tuner import Start, Tuned

__all__ = ["Branch", "Branched", "ConvLayer", "replace_layers"]

ConvLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d


class Branch(nn.Module, ABC):
    """A frozen convolution whose kernel a trained ΔK moves.

    The forward pass makes the whole kernel and runs one convolution; a method whose branch is
    cheaper beside the dense convolution overrides it.

    Args:
        layer: The dense convolution, of any groups, stride and padding; not trained.
    """

    def __init__(self, layer: ConvLayer) -> None:
        super().__init__()
        self.layer = layer

    @abstractmethod
    def delta(self) -> torch.Tensor:
        """Return ``ΔK (O, I/g, *k)`` in the kernel's dtype."""

    def kernel(self) -> torch.Tensor:
        """Return ``K0 + ΔK (O, I/g, *k)``."""
        return self.layer.weight + self.delta()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the convolution returns with the moved kernel."""
        out: torch.Tensor = self.layer._conv_forward(x, self.kernel(), self.layer.bias)
        return out


class Branched(Tuned):
    """A folded network with a :class:`Branch` in place of each adapted convolution."""

    def merge(self) -> nn.Module:
        """Return a copy with each convolution back in its place, ``K0 + ΔK`` as its kernel."""
        merged = copy.deepcopy(self.module).requires_grad_(False)
        for name, branch in list(merged.named_modules()):
            if isinstance(branch, Branch):
                branch.layer.weight.copy_(branch.kernel())
                _set(merged, name, branch.layer)
        return merged


def replace_layers(start: Start, make: Callable[[str, ConvLayer], nn.Module | None]) -> nn.Module:
    """Copy the folded network, freeze it, and put a module in place of each convolution.

    Args:
        start: What the method starts from; not changed.
        make: From a layer's name and its copy to what takes its place, or None to leave it.
            Depthwise convolutions are not offered, see ``fleet.adapt.attach.adaptable_layers``.

    Returns:
        The copy in evaluation mode; only what ``make`` added may require gradients.

    Raises:
        ModelError: ``rank-too-small`` below 1; ``nothing-to-train`` when no layer was replaced.
    """
    if start.rank < 1:
        raise ModelError("rank-too-small", f"a rank is at least 1, not {start.rank}")
    module = copy.deepcopy(start.folded).requires_grad_(False).eval()
    replaced = 0
    for name, layer in _convolutions(module):
        added = make(name, layer)
        if added is not None:
            _set(module, name, added.eval())
            replaced += 1
    if not replaced:
        raise ModelError(
            "nothing-to-train",
            f"{type(start.folded).__name__} has no convolution that this method can adapt",
            "Depthwise convolutions are left out; train the head or biases instead.",
        )
    return module


def _convolutions(module: nn.Module) -> Iterator[tuple[str, ConvLayer]]:
    for name, layer in adaptable_layers(module)[0].items():
        assert isinstance(layer, Convolution)
        yield name, layer


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
