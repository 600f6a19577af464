"""Fold: batch norms in evaluation mode disappear into the convolutions before them.

Only a batch norm directly after a convolution folds: ``W ← W·γ/σ``, ``b ← β + (b - μ)·γ/σ`` with
``σ = √(var + ε)``. One on a block's input cannot be folded into a zero-padded convolution (the
border would come out wrong), nor can an identity shortcut's: those stay as fixed affine maps per
channel. Computed in float64, rounded once, so that every machine folds to the same bits.
"""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from fleet.adapt.tracing import trace
from fleet.errors import ModelError

__all__ = ["ChannelAffine", "Convolution", "fold", "norms_behind"]

Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class ChannelAffine(nn.Module):
    """``scale·x + shift`` per channel: what is left of a batch norm that cannot be folded.

    Args:
        scale: ``(channels,)``.
        shift: ``(channels,)``.
    """

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)
        self.shift = nn.Parameter(shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a tensor like ``x (batch, channels, ...)``."""
        spatial = (1,) * (x.dim() - 2)
        return x * self.scale.view(-1, *spatial) + self.shift.view(-1, *spatial)


class _Tracer(fx.Tracer):
    """Takes what an earlier fold left as a layer, so that folding twice is folding once."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ChannelAffine) or super().is_leaf_module(m, module_qualified_name)


def fold(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` in evaluation mode with its batch norms folded.

    The copy keeps the class, the layers' names and the outputs; a folded batch norm becomes an
    ``nn.Identity``, another a :class:`ChannelAffine`. The argument is not changed.

    Raises:
        ModelError: ``untraceable`` when the forward pass cannot be followed symbolically.
    """
    folded = copy.deepcopy(model).eval()
    before = _convolution_before(folded)
    for name, module in list(folded.named_modules()):
        if isinstance(module, BatchNorm):
            scale, shift = _affine(module)
            if name in before:
                _absorb(folded.get_submodule(before[name]), scale, shift)
                _replace(folded, name, nn.Identity())
            else:
                dtype = module.get_buffer("running_mean").dtype
                _replace(folded, name, ChannelAffine(scale.to(dtype), shift.to(dtype)))
    return folded


def norms_behind(model: nn.Module) -> dict[str, str]:
    """Return, by the convolution's name, the name of the batch norm that folds into it.

    Raises:
        ModelError: ``untraceable``, see :func:`fold`.
    """
    return {layer: norm for norm, layer in _convolution_before(model).items()}


def _convolution_before(model: nn.Module) -> dict[str, str]:
    """Map each batch norm to the convolution whose output goes there and nowhere else."""
    try:
        graph = trace(_Tracer(), model)
    except Exception as error:  # fx raises whatever the model's own forward raises on a proxy
        raise ModelError(
            "untraceable",
            f"{type(model).__name__} cannot be followed symbolically: {error}",
            "Write its forward without control flow that depends on the data.",
        ) from error
    found: dict[str, str] = {}
    calls: dict[str, int] = {}
    read: set[str] = set()  # modules whose parameters the forward pass also reads itself
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
        elif node.op == "get_attr":
            read.add(str(node.target).rpartition(".")[0])
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(
            model.get_submodule(str(node.target)), BatchNorm
        ):
            continue
        source = node.args[0] if node.args else node.kwargs.get("input")
        if (
            isinstance(source, fx.Node)
            and source.op == "call_module"
            and isinstance(model.get_submodule(str(source.target)), Convolution)
            and len(source.users) == 1
            and calls[str(source.target)] == calls[str(node.target)] == 1
            and str(source.target) not in read
        ):
            found[str(node.target)] = str(source.target)
    return found


def _affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the evaluation-mode ``(scale, shift)`` of a batch norm in float64."""
    assert isinstance(norm, BatchNorm)
    if not norm.track_running_stats:
        raise ModelError(
            "norm-without-statistics", "a batch norm without running statistics cannot be frozen"
        )
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    mean, variance = mean.double(), variance.double()
    weight = norm.weight.detach().double() if norm.affine else torch.ones_like(mean)
    bias = norm.bias.detach().double() if norm.affine else torch.zeros_like(mean)
    scale = weight / torch.sqrt(variance + norm.eps)
    return scale, bias - mean * scale


def _absorb(layer: nn.Module, scale: torch.Tensor, shift: torch.Tensor) -> None:
    assert isinstance(layer, Convolution)
    weight = layer.weight.detach().double() * scale.view(-1, *(1,) * (layer.weight.dim() - 1))
    bias = shift if layer.bias is None else shift + layer.bias.detach().double() * scale
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype))
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype))


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
