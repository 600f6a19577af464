"""A convolution on a tape, with or without a core.

With a core in the ``svd`` frame, ``M (r, O)`` frozen and ``C (O, r)`` trained:

    u = conv(x, K0)      z = M·u      y = u + C·z + b            kept: z, r channels
    dC = gy·zᵀ      gz = Cᵀ·gy      gu = gy + Mᵀ·gz      dx = convᵀ(gu, K0)

The bias rides on the convolution, and ``z = M·(u + b) - M·b``. Where a batch has more positions
than a kernel has columns, the core is added to the kernel instead, for as long as one call takes:
``dx = convᵀ(gy, K0 + C·S)`` with ``S = M·K0``, the same sum in another order.

In the ``tt`` frame ``z = conv(x, S)`` is a convolution of r channels beside the dense one, and dx
gains ``convᵀ(gz, S)``. No gradient of a frozen kernel is ever formed, so x is not kept. A dense
parameter that is trained itself costs what it costs everywhere: a kernel needs x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from fleet.adapt.attach import CoreLayer
from fleet.adapt.lean.layers import Trained
from fleet.adapt.lean.layout import channels_last, matrix
from fleet.adapt.lean.op import Backward, Forward, Kept
from fleet.adapt.lean.winograd import TAPS, Winograd

__all__ = ["Convolve"]

# Fewest channels on either side for which fewer products pay.
QUICK_CHANNELS = 32


@dataclass(frozen=True)
class Convolve:
    """A convolution in any number of dimensions and groups, with or without a core.

    Args:
        layer: The dense layer.
        core: The layer that carries its core and frame; None where it has none.
        padding: Zeros on both sides, by dimension.
        trained: What is trained.
        quick: Whether a frozen kernel that suits runs with fewer products
            (:mod:`fleet.adapt.lean.winograd`), equal up to rounding; it takes more memory.
    """

    layer: nn.Module
    core: CoreLayer | None
    padding: tuple[int, ...]
    trained: Trained
    quick: bool = field(default=False, kw_only=True)

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
        """Return the layer's output for ``x (batch, channels, ...)``."""
        x, layer, core = channels_last(inputs[0]), self._layer, self.core
        shape, kept_x = tuple(x.shape), x if run.keep and self.pins else None
        if core is None:
            return self._run(x, layer.weight, self._bias), (shape, None, kept_x)
        y = self._run(x, layer.weight, self._bias)
        rows = matrix(y, layer.groups)
        if core.kind == "svd":
            z = torch.baddbmm(self._offset, rows, core.mixing.transpose(1, 2))
        else:
            z = matrix(self._run(x, core.suffix, None), layer.groups)
        self._add_core(rows, z)
        return y, (shape, z, kept_x) if run.keep else ()

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Collect the gradients of what is trained; return that of the input where wanted."""
        (shape, z, x), laid = kept, channels_last(grad)
        owned, grad = run.owned or laid.data_ptr() != grad.data_ptr(), laid
        if self.trained.bias:
            self._collect_bias(grad, run)
        below, weight = run.wants[0] or x is not None, self._layer.weight
        gz: torch.Tensor | None = None
        if self.core is not None:
            assert isinstance(z, torch.Tensor)
            self._collect_core(grad, z, run)
            if below and x is None and self._merges(grad):
                weight = self._merged
            elif below:
                grad, gz = self._through_core(grad, owned)
        if not below:
            return (None,)
        like = x if isinstance(x, torch.Tensor) else _any_tensor(shape, grad)
        dx, dw = self._transposed(grad, weight, like, run.wants[0], x is not None)
        if dw is not None:
            run.collect(self.trained.weight, dw)
        if dx is not None and gz is not None and self.core is not None:
            beside, _ = self._transposed(gz, self.core.suffix, like, True, False)
            assert beside is not None
            dx.add_(beside)
        return (dx,)

    def _add_core(self, rows: torch.Tensor, z: torch.Tensor) -> None:
        """Add ``C·z`` to ``rows (groups, rows, O/groups)``, in place."""
        rows.baddbmm_(z, self._cores.transpose(1, 2))

    def _collect_bias(self, grad: torch.Tensor, run: Backward) -> None:
        run.collect(self.trained.bias, grad.movedim(1, -1).flatten(0, -2).sum(dim=0))

    def _collect_core(self, grad: torch.Tensor, z: torch.Tensor, run: Backward) -> None:
        assert self.core is not None
        # The other way round this thin product takes ten times as long.
        found = torch.bmm(z.transpose(1, 2), matrix(grad, self._layer.groups)).transpose(1, 2)
        run.collect(self.trained.core, found.reshape(self.core.core.shape))

    def _through_core(
        self, grad: torch.Tensor, owned: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the gradient of the dense output, and of z where that goes on to the input."""
        assert self.core is not None
        rows = matrix(grad, self._layer.groups)
        gz = self._reduced(rows)
        if self.core.kind != "svd":
            return grad, _unmatrix(gz, grad)
        if owned:
            rows.baddbmm_(gz, self.core.mixing)
            return grad, None
        return _unmatrix(torch.baddbmm(rows, gz, self.core.mixing), grad), None

    def _reduced(self, rows: torch.Tensor) -> torch.Tensor:
        """Return ``Cᵀ·gy (groups, rows, r)`` for ``rows (groups, rows, O/groups)``."""
        return torch.bmm(rows, self._cores.transpose(1, 2).contiguous().transpose(1, 2))

    def _merges(self, grad: torch.Tensor) -> bool:
        """Whether to add the core to the kernel for a moment, rather than to the gradient.

        Both are the same sum of products; the kernel is the smaller of the two in a large batch.
        """
        weight: torch.Tensor = self._layer.weight
        inputs, positions = (
            weight[0].numel() * int(self._layer.groups),
            grad.numel() // grad.shape[1],
        )
        return inputs < positions and self._fewer is None

    @property
    def _merged(self) -> torch.Tensor:
        """``K0 + C·S``, the kernel that the layer amounts to."""
        core, laid = self.core, self._layer.weight.detach().movedim(1, -1)
        assert core is not None
        kernel = laid.reshape(core.groups, len(laid) // core.groups, -1)
        suffix = (
            torch.bmm(core.mixing, kernel)
            if core.kind == "svd"
            else core.suffix.movedim(1, -1).reshape(core.groups, -1, kernel.shape[2])
        )
        found = torch.baddbmm(kernel, self._cores, suffix)
        return found.view(laid.shape).movedim(-1, 1)

    @property
    def _offset(self) -> torch.Tensor:
        """``-M·b``, which takes the bias out of z again: the convolution adds it on its way."""
        core, bias = self.core, self._bias
        assert core is not None
        if bias is None:
            return core.mixing.new_zeros(())
        by_group = bias.detach().view(core.groups, -1, 1)
        return torch.bmm(core.mixing, by_group).neg_().transpose(1, 2)

    def _run(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        conv, (flat, zeros) = self._layer, self._geometry
        if self._fewer is not None and weight is conv.weight:
            return self._fewer[0](x, bias)
        y = torch.ops.aten.convolution(flat(x), flat(weight), bias, *zeros, conv.groups)
        return channels_last(y.squeeze(2) if x.dim() == 3 else y)

    def _transposed(
        self, grad: torch.Tensor, weight: torch.Tensor, x: torch.Tensor, wants: bool, dense: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        groups, (flat, geometry) = self._layer.groups, self._geometry
        if self._fewer is not None and weight is self._layer.weight and not dense:
            return (self._fewer[1](grad) if wants else None), None
        dx, dw, _ = torch.ops.aten.convolution_backward(
            *(flat(grad), flat(x), flat(weight), None, *geometry, groups, (wants, dense, False))
        )
        if grad.dim() == 3:
            dx, dw = (None if d is None else d.squeeze(2) for d in (dx, dw))
        return None if dx is None else channels_last(dx), dw

    @cached_property
    def _geometry(self) -> tuple[Callable[[torch.Tensor], torch.Tensor], tuple[Any, ...]]:
        """How to give a tensor two dimensions at least, and stride, padding, … in as many.

        PyTorch's one-dimensional convolution would bring the channels back to the front.
        """
        conv, dims = self._layer, max(len(self.padding), 2)
        one = len(self.padding) == 1
        stride, padding, dilation = (
            [plain, *given] if one else list(given)
            for plain, given in ((1, conv.stride), (0, self.padding), (1, conv.dilation))
        )
        flat = _with_height if one else _as_is
        return flat, (stride, padding, dilation, False, [0] * dims)

    @cached_property
    def _fewer(self) -> tuple[Winograd, Winograd] | None:
        """The kernel's two filters with fewer products; None where it has none."""
        conv, weight = self._layer, self._layer.weight
        if not self.quick or self.trained.weight or not _suits(conv, self.padding):
            return None
        kernel, (padding,) = weight.detach(), self.padding
        return Winograd(kernel, padding), Winograd.transposed(kernel, padding)

    @property
    def _layer(self) -> Any:
        return self.layer

    @property
    def _bias(self) -> torch.Tensor | None:
        """What the convolution adds by channel."""
        bias: torch.Tensor | None = self._layer.bias
        return bias

    @property
    def _cores(self) -> torch.Tensor:
        """The core by group, ``(groups, O/groups, r)``."""
        assert self.core is not None
        return self.core.core.detach().view(self.core.groups, -1, self.core.core.shape[1])


def _suits(conv: Any, padding: tuple[int, ...]) -> bool:
    """Tell whether fewer products pay for the transforms around them."""
    weight: torch.Tensor = conv.weight
    plain = weight.dim() == 3 and conv.groups == 1 and conv.stride == conv.dilation == (1,)
    if not plain or weight.device.type != "cpu" or weight.shape[2] not in TAPS:
        return False
    return min(weight.shape[:2]) >= QUICK_CHANNELS and padding[0] < weight.shape[2]


def _unmatrix(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Undo :func:`matrix` for as many windows and positions as ``like`` has."""
    channels = rows.shape[0] * rows.shape[2]
    flat = rows.transpose(0, 1).reshape(len(like), *like.shape[2:], channels)
    return flat.movedim(-1, 1)


def _with_height(x: torch.Tensor) -> torch.Tensor:
    return x.unsqueeze(2)


def _as_is(x: torch.Tensor) -> torch.Tensor:
    return x


def _any_tensor(shape: object, grad: torch.Tensor) -> torch.Tensor:
    """Return a tensor of a shape, channels last; its values are never read.

    The gradient of a convolution's input does not depend on the input, but PyTorch's operator asks
    for one. Where the output's gradient is large enough its memory serves, so nothing is allocated.
    """
    assert isinstance(shape, tuple)
    batch, channels, *rest = shape
    entries, laid = torch.Size(shape).numel(), (batch, *rest, channels)
    if grad.numel() >= entries:
        flat = grad.movedim(1, -1).reshape(-1)[:entries].view(laid)
    else:
        flat = grad.new_empty(laid)
    return flat.movedim(-1, 1)
