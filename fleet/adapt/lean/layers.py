"""Layers on a tape that hold parameters but are no convolution; what any layer trains.

A linear layer's core works as a convolution's, see :mod:`fleet.adapt.lean.convolution`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fleet.adapt.attach import CoreLayer
from fleet.adapt.fold import ChannelAffine
from fleet.adapt.lean.op import Backward, Forward, Kept

__all__ = ["Affine", "Multiply", "Trained"]


@dataclass(frozen=True)
class Trained:
    """Entry names of what a layer trains; empty where it is frozen."""

    core: str = ""
    weight: str = ""
    bias: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(name for name in (self.core, self.weight, self.bias) if name)

    @property
    def keeps(self) -> str:
        """What the layer saves, in words."""
        kept = ["z"] if self.core else []
        return " and ".join([*kept, "its input"] if self.weight else kept) or "nothing"


@dataclass(frozen=True)
class Multiply:
    """A linear layer over the last dimension, with or without a core.

    Args:
        layer: The dense layer.
        core: The layer that carries its core and frame; None where it has none.
        trained: What is trained.
    """

    layer: torch.nn.Linear
    core: CoreLayer | None
    trained: Trained

    @property
    def entries(self) -> tuple[str, ...]:
        """What it trains."""
        return self.trained.names

    @property
    def pins(self) -> bool:
        """Whether it keeps its input."""
        return bool(self.trained.weight)

    @property
    def keeps(self) -> str:
        """What it saves, in words."""
        return self.trained.keeps

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the layer's output for ``x (batch, ..., in)``."""
        x, core, bias = inputs[0], self.core, self._bias
        kept_x = x if run.keep and self.pins else None
        y = torch.nn.functional.linear(x, self._weight, None if core is not None else bias)
        if core is None:
            return y, (None, kept_x)
        rows = y.view(-1, y.shape[-1])
        if core.kind == "svd":
            z = rows @ core.mixing[0].T
        else:
            z = x.reshape(-1, x.shape[-1]) @ core.suffix.T
        rows.addmm_(z, self._core.T)
        if bias is not None:
            y.add_(bias)
        return y, (z, kept_x) if run.keep else ()

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Collect the gradients of what is trained; return that of the input where wanted."""
        (z, x), core = kept, self.core
        shape, rows = grad.shape, grad.reshape(-1, grad.shape[-1])
        if self.trained.bias:
            run.collect(self.trained.bias, rows.sum(dim=0))
        gz: torch.Tensor | None = None
        if core is not None:
            assert isinstance(z, torch.Tensor)
            run.collect(self.trained.core, rows.T @ z)
            gz = rows @ self._core
            if core.kind == "svd":
                rows = torch.addmm(rows, gz, core.mixing[0])
        if isinstance(x, torch.Tensor):
            run.collect(self.trained.weight, rows.T @ x.reshape(-1, x.shape[-1]))
        if not run.wants[0]:
            return (None,)
        dx = rows @ self._weight
        if gz is not None and core is not None and core.kind != "svd":
            dx.addmm_(gz, core.suffix)
        return (dx.view(*shape[:-1], -1),)

    @property
    def _weight(self) -> torch.Tensor:
        return self.layer.weight

    @property
    def _bias(self) -> torch.Tensor | None:
        bias: torch.Tensor | None = self.layer.bias
        return bias

    @property
    def _core(self) -> torch.Tensor:
        """The core ``(O, r)``."""
        assert self.core is not None
        return self.core.core.detach()


@dataclass(frozen=True)
class Affine:
    """``scale·x + shift`` per channel: a batch norm that could not be folded.

    Args:
        layer: The affine map.
        scale: Entry name of its scale, empty while that is frozen.
        shift: Entry name of its shift, likewise.
    """

    layer: ChannelAffine
    scale: str = ""
    shift: str = ""

    @property
    def entries(self) -> tuple[str, ...]:
        """What it trains."""
        return tuple(name for name in (self.scale, self.shift) if name)

    @property
    def pins(self) -> bool:
        """Whether it keeps its input."""
        return bool(self.scale)

    @property
    def keeps(self) -> str:
        """What it saves, in words."""
        return "its input" if self.scale else "nothing"

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the mapped ``x (batch, channels, ...)``."""
        x = inputs[0]
        lift = (-1, *(1,) * (x.dim() - 2))
        scale, shift = self.layer.scale.view(lift), self.layer.shift.view(lift)
        y = x.mul_(scale) if run.owned[0] and not self.pins else x * scale
        return y.add_(shift), (x if run.keep and self.pins else None,)

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Collect the gradients of what is trained; return that of the input where wanted."""
        dims = (0, *range(2, grad.dim()))
        if self.shift:
            run.collect(self.shift, grad.sum(dim=dims))
        if isinstance(kept[0], torch.Tensor):
            run.collect(self.scale, (grad * kept[0]).sum(dim=dims))
        if not run.wants[0]:
            return (None,)
        scale = self.layer.scale.detach().view(-1, *(1,) * (grad.dim() - 2))
        return (grad.mul_(scale) if run.owned else grad * scale,)
