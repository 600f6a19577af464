"""The layer that attaching puts in a convolution's place, and which layers can have one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.fold import Convolution
from fleet.adapt.frames import Frame

try:
    from threadpoolctl import threadpool_limits
except ModuleNotFoundError:  # a device may come without it
    threadpool_limits = None

__all__ = ["CoreLayer", "FactorLayer", "adaptable_layers", "replace", "single_thread"]


class CoreLayer(nn.Module):
    """A Conv1d, Conv2d or Linear with a trainable output-side core beside it.

    Args:
        layer: The dense layer with the base's kernel.
        frame: Its frame.
        core: ``C (O, r)``, the start of the trainable parameter.
        moving: Whether the layer's kernel will move as well. Its output is then no longer that of
            the base's kernel, so that an ``svd`` bottleneck is not read off it.
    """

    mixing: torch.Tensor
    suffix: torch.Tensor

    def __init__(
        self, layer: nn.Module, frame: Frame, core: torch.Tensor, *, moving: bool = False
    ) -> None:
        super().__init__()
        self.layer = layer
        self.kind = "suffix" if moving else frame.kind
        self.groups = frame.groups
        self.is_linear = isinstance(layer, nn.Linear)
        self.core = nn.Parameter(core)
        weight = layer.get_parameter("weight")
        if self.kind == "svd":
            # A copy: the frame is shared by every attached network and must not follow one of them.
            self.register_buffer("mixing", torch.tensor(frame.array, dtype=weight.dtype))
        else:
            suffix = np.array(frame.suffix(weight.detach().cpu().numpy()))
            self.register_buffer("suffix", torch.from_numpy(suffix).to(weight).flatten(0, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the dense layer returns, moved by the core path."""
        weight = self.layer.get_parameter("weight")
        bias: torch.Tensor | None = getattr(self.layer, "bias", None)
        u = _apply(self.layer, x, weight)
        rows = self._by_group(u)
        cores = self.core.view(self.groups, rows.shape[2], -1)
        y = (rows + torch.matmul(cores, self.bottleneck(x, rows))).reshape(u.shape)
        if bias is None:
            return y
        return y + (bias if self.is_linear else bias.view(-1, *(1,) * (y.dim() - 2)))

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """Return the dense output without bias ``(batch, groups, O/groups, positions)``."""
        weight = self.layer.get_parameter("weight")
        return self._by_group(_apply(self.layer, x, weight))

    def bottleneck(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return z ``(batch, groups, r, positions)``, what the core multiplies.

        Args:
            x: The layer's input.
            rows: Its dense output without bias ``(batch, groups, O/groups, positions)``.
        """
        if self.kind == "svd":
            return torch.matmul(self.mixing, rows)
        return self._by_group(_apply(self.layer, x, self.suffix))

    def _by_group(self, u: torch.Tensor) -> torch.Tensor:
        """View channels by group: ``(batch, groups, channels/groups, positions)``."""
        if self.is_linear:
            return u.reshape(-1, 1, u.shape[-1], 1)
        return u.reshape(u.shape[0], self.groups, u.shape[1] // self.groups, -1)


class FactorLayer(nn.Module):
    """A frozen layer with both factors of a low-rank kernel trained beside it: LoRA.

    ``y = conv(x, K0) + C · conv(x, S + ΔS) + b``. No core layer: what only a core's gradient is
    written for by hand must not take it for one.

    Args:
        layer: As for :class:`CoreLayer`.
        frame: Likewise; its suffix S is where the inner factor starts.
        core: ``C (O, r)``, the start of one trainable parameter.
        change: ``ΔS (r, I/groups, *k)``, one for all groups, the start of the other.
    """

    start: torch.Tensor

    def __init__(
        self, layer: nn.Module, frame: Frame, core: torch.Tensor, change: torch.Tensor
    ) -> None:
        super().__init__()
        self.layer = layer
        self.core, self.change = nn.Parameter(core), nn.Parameter(change)
        weight = layer.get_parameter("weight").detach()
        start = torch.from_numpy(np.array(frame.suffix(weight.cpu().numpy())))
        self.register_buffer("start", start.to(weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the dense layer returns, moved by both factors."""
        u: torch.Tensor = self.layer(x)
        suffix = self.start + self.change
        z = _apply(self.layer, x, suffix.flatten(0, 1))
        if isinstance(self.layer, nn.Linear):
            return u + torch.matmul(z, self.core.T)
        groups, rank = suffix.shape[:2]
        cores = self.core.view(groups, -1, rank)
        moved = torch.matmul(cores, z.reshape(len(z), groups, rank, -1))
        return u + moved.reshape(u.shape)


def _apply(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Run ``layer`` without its bias and with another kernel; strides and padding are its own."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight)
    assert isinstance(layer, Convolution)
    out: torch.Tensor = layer._conv_forward(x, weight, None)
    return out


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
        if module.groups > 1 and module.in_channels == module.groups:
            left[name] = "depthwise: its core degenerates to one gain per channel"
        else:
            found[name] = module
    return found, left


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute on one thread: nets this small lose time on more, and sums then keep one order.

    Covers torch, and numpy's linear algebra where threadpoolctl is installed: on busy cores a small
    SVD on all of them takes a hundred times as long as on one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _linear_algebra.limited():
            yield
    finally:
        torch.set_num_threads(before)


class _Limit:
    """The limit on numpy's linear algebra, which is the process's: set once however often it is.

    To look for the libraries takes longer than a small network's forward pass.
    """

    def __init__(self) -> None:
        self._lock, self._holders = threading.Lock(), 0
        self._limit: Any = None

    @contextmanager
    def limited(self) -> Iterator[None]:
        with self._lock:
            if not self._holders and threadpool_limits is not None:
                self._limit = threadpool_limits(1)
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                if not self._holders and self._limit is not None:
                    self._limit.restore_original_limits()
                    self._limit = None


_linear_algebra = _Limit()


def replace(model: nn.Module, name: str, module: Any) -> None:
    """Put ``module`` where the submodule ``name`` is, in place."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
