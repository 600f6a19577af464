"""Attach: a folded network whose trainable parameters are exactly a core state's entries.

An adapted layer computes ``y = u + C·z + b`` with ``u = conv(x, K0)``. In the ``svd`` frame the
bottleneck is read off the frozen output, ``z = M·u`` (no second convolution); in the ``tt`` frame
it is an r-channel convolution of its own, ``z = conv(x, S)``. Training always runs on the immutable
``K0`` with the core starting at the release's; what a device sends is the difference.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.fold import Convolution
from fleet.adapt.frames import Frame, FrameKind, make_frame
from fleet.adapt.state import CORE_SUFFIX, CoreState
from fleet.errors import MismatchError

__all__ = ["Attached", "CoreLayer", "adaptable_layers", "attach", "make_frames"]


class CoreLayer(nn.Module):
    """A frozen Conv1d, Conv2d or Linear with a trainable output-side core beside it.

    Args:
        layer: The dense layer; its parameters are not trained.
        frame: Its frame.
        core: ``C (O, r)``, the start of the trainable parameter.
    """

    mixing: torch.Tensor
    suffix: torch.Tensor

    def __init__(self, layer: nn.Module, frame: Frame, core: torch.Tensor) -> None:
        super().__init__()
        self.layer = layer
        self.kind = frame.kind
        self.groups = frame.groups
        self.is_linear = isinstance(layer, nn.Linear)
        self.core = nn.Parameter(core)
        weight: torch.Tensor = layer.weight  # type: ignore[assignment]
        if frame.kind == "svd":
            self.register_buffer("mixing", torch.from_numpy(frame.array).to(weight.dtype))
        else:
            suffix = torch.from_numpy(frame.array).to(weight.dtype)
            stacked = suffix.expand(self.groups, *suffix.shape).reshape(-1, *suffix.shape[1:])
            self.register_buffer("suffix", stacked.contiguous())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the dense layer returns, moved by the core path."""
        weight: torch.Tensor = self.layer.weight  # type: ignore[assignment]
        bias: torch.Tensor | None = self.layer.bias  # type: ignore[assignment]
        u = _apply(self.layer, x, weight)
        rows = self._by_group(u)
        cores = self.core.view(self.groups, rows.shape[2], -1)
        if self.kind == "svd":
            z = torch.matmul(self.mixing, rows)
        else:
            z = self._by_group(_apply(self.layer, x, self.suffix))
        y = (rows + torch.matmul(cores, z)).reshape(u.shape)
        if bias is None:
            return y
        return y + (bias if self.is_linear else bias.view(-1, *(1,) * (y.dim() - 2)))

    def _by_group(self, u: torch.Tensor) -> torch.Tensor:
        """View channels by group: ``(batch, groups, channels/groups, positions)``."""
        if self.is_linear:
            return u.reshape(-1, 1, u.shape[-1], 1)
        return u.reshape(u.shape[0], self.groups, u.shape[1] // self.groups, -1)


def _apply(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Run ``layer`` without its bias and with another kernel; strides and padding are its own."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    assert isinstance(layer, Convolution)
    return layer._conv_forward(x, weight, None)


@dataclass(frozen=True, eq=False)
class Attached:
    """A network ready to train.

    Args:
        module: The folded network in evaluation mode, adapted layers replaced.
        parameters: The only parameters that require gradients, by entry name of the state.
    """

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]

    def state(self) -> CoreState:
        """Return the current values of the trainable parameters."""
        return CoreState.of(
            {name: p.detach().cpu().numpy() for name, p in self.parameters.items()}
        )

    def detach(self) -> nn.Module:
        """Return the folded network with its dense layers back in place, unmoved."""
        for name, module in list(self.module.named_modules()):
            if isinstance(module, CoreLayer):
                _set(self.module, name, module.layer)
        return self.module


def attach(
    folded: nn.Module, frames: Mapping[str, Frame], state: CoreState, *, dtype: torch.dtype
) -> Attached:
    """Copy a folded network and make exactly the entries of ``state`` trainable.

    Args:
        folded: Folded network; not changed.
        frames: Frame by layer name; at least those that the state's cores name.
        state: Where training starts. ``LAYER.core`` entries are cores, others are dense deltas of
            the parameter that they name.
        dtype: Dtype to compute in; float64 serves as an oracle.

    Raises:
        MismatchError: ``unknown-entry`` when an entry names no layer or parameter.
    """
    module = copy.deepcopy(folded).to(dtype).requires_grad_(False).eval()
    dense = dict(module.named_parameters())
    parameters: dict[str, nn.Parameter] = {}
    for name, array in state.arrays.items():
        value = torch.from_numpy(np.array(array)).to(dtype)
        layer = name.removesuffix(CORE_SUFFIX)
        if name.endswith(CORE_SUFFIX) and layer in frames:
            frame = frames[layer].truncated(array.shape[1])
            adapted = CoreLayer(module.get_submodule(layer), frame, value)
            _set(module, layer, adapted)
            parameters[name] = adapted.core
        elif name in dense and dense[name].shape == value.shape:
            dense[name].data.add_(value)
            parameters[name] = dense[name].requires_grad_(True)
        else:
            raise MismatchError(
                "unknown-entry", f"the state's entry {name} {array.shape} fits no layer of this base"
            )
    return Attached(module, parameters)


def adaptable_layers(folded: nn.Module) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Find what can carry a core.

    Returns:
        Layers by name (every convolution, 1×1 shortcuts included), and the reason for each
        convolution that is left out: a depthwise kernel's core is only a gain per channel.
    """
    found: dict[str, nn.Module] = {}
    left: dict[str, str] = {}
    for name, module in folded.named_modules():
        if not isinstance(module, Convolution):
            continue
        if module.groups > 1 and module.out_channels == module.groups:
            left[name] = "depthwise: its core degenerates to one gain per channel"
        else:
            found[name] = module
    return found, left


def make_frames(folded: nn.Module, kind: FrameKind, rank: int) -> dict[str, Frame]:
    """Make the frames of all adaptable layers from the folded kernels, all of one rank."""
    layers, _ = adaptable_layers(folded)
    return {
        name: make_frame(
            layer.weight.detach().numpy(),  # type: ignore[operator,union-attr]
            kind,
            rank,
            groups=int(layer.groups),  # type: ignore[arg-type]
            layer=name,
        )
        for name, layer in layers.items()
    }


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute on one thread: nets this small lose time on more, and sums then keep one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _set(model: nn.Module, name: str, module: Any) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
