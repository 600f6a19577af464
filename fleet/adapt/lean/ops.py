"""Operations of a tape that hold no parameters: their forward, what they keep, their backward.

Each keeps the least that its backward needs: a rectifier one bit per entry, a sum or a mean only
shapes. An operation may write into a tensor only where the tape says that nobody else holds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from fleet.adapt.lean.bits import Bits
from fleet.adapt.lean.layout import channels_last
from fleet.adapt.lean.op import Backward, Forward, Kept, batch_mixed, not_the_batch

__all__ = [
    "Add",
    "Clamp",
    "Concatenate",
    "Dropout",
    "Mean",
    "Pad",
    "Permute",
    "Reshape",
    "Transposed",
    "masked",
]


class Plain:
    """An operation without parameters that keeps only shapes."""

    entries: tuple[str, ...] = ()
    pins = False
    keeps = "nothing"


@dataclass(frozen=True)
class Clamp(Plain):
    """Rectifiers: ReLU (``low=0``), ReLU6 (``0, 6``), hard tanh, ``torch.clamp``.

    Args:
        low: Lower bound; None for none.
        high: Upper bound; None for none.
        closed: Whether the gradient passes at the bounds, as ``torch.clamp`` has it.
        roomy: Whether a ReLU keeps its output rather than bits: faster, and 32 times the memory.
    """

    low: float | None
    high: float | None
    closed: bool = False
    roomy: bool = False
    keeps = "one bit per entry"

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the clamped input."""
        x = inputs[0]
        if self.is_relu:
            y = x.relu_() if run.owned[0] else x.relu()
            if self.roomy:
                return y, (y,)
            return y, (Bits.positive(y),) if run.keep else ()
        kept = (Bits.of(self.passes(x)),) if run.keep else ()
        if run.owned[0]:
            return x.clamp_(self.low, self.high), kept
        return x.clamp(self.low, self.high), kept

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient where the input passed."""
        if self.roomy and self.is_relu:
            return (torch.ops.aten.threshold_backward(grad, kept[0], 0),)
        return (masked(grad, kept[0], run.owned),)

    @property
    def pins(self) -> bool:  # type: ignore[override]
        """Whether it keeps its output."""
        return self.roomy and self.is_relu

    @property
    def is_relu(self) -> bool:
        """Whether this is ``max(x, 0)``."""
        return self.low == 0 and self.high is None and not self.closed

    def passes(self, x: torch.Tensor) -> torch.Tensor:
        """Return where the gradient passes, boolean like ``x``."""
        above = None if self.low is None else (x >= self.low if self.closed else x > self.low)
        below = None if self.high is None else (x <= self.high if self.closed else x < self.high)
        if above is None or below is None:
            found = above if below is None else below
            assert found is not None, "a clamp has a bound"
            return found
        return above.logical_and_(below)


def masked(grad: torch.Tensor, bits: object, owned: bool) -> torch.Tensor:
    """Return ``grad`` where the bits are set, zero elsewhere; in place where it is owned."""
    assert isinstance(bits, Bits)
    return grad.mul_(bits.factors()) if owned else grad * bits.factors()


@dataclass(frozen=True)
class Add(Plain):
    """The sum of two tensors, of one shape or broadcast."""

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return ``a + b``."""
        a, b = inputs
        shapes: Kept = (tuple(a.shape), tuple(b.shape))
        if a.shape == b.shape and run.owned[0]:
            return a.add_(b), shapes
        if a.shape == b.shape and run.owned[1]:
            return b.add_(a), shapes
        return a + b, shapes

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Hand one and the same gradient to both inputs; the tape counts its holders."""
        return tuple(
            grad.sum_to_size(shape) if wanted else None  # type: ignore[call-overload]
            for shape, wanted in zip(kept, run.wants, strict=True)
        )


@dataclass(frozen=True)
class Concatenate(Plain):
    """Tensors side by side along a dimension that is not the batch."""

    dim: int

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the joined tensor."""
        not_the_batch(self.dim, inputs[0])
        widths = tuple(x.shape[self.dim] for x in inputs)
        if self.dim == 1 and inputs[0].dim() > 2:
            return torch.cat([x.movedim(1, -1) for x in inputs], dim=-1).movedim(-1, 1), widths
        return torch.cat(list(inputs), dim=self.dim), widths

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Return each input's own part."""
        parts = torch.split(grad, list(kept), dim=self.dim)  # type: ignore[arg-type]
        return tuple(channels_last(p) if w else None for p, w in zip(parts, run.wants, strict=True))


@dataclass(frozen=True)
class Pad(Plain):
    """Constant padding as ``torch.nn.functional.pad`` counts it."""

    amounts: tuple[int, ...]
    value: float

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the padded input."""
        return _padded(inputs[0], self.amounts, self.value), ()

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Cut the padding off again."""
        return (_padded(grad, [-amount for amount in self.amounts], 0.0),)


@dataclass(frozen=True)
class Mean(Plain):
    """The mean over dimensions that are not the batch; global average pooling is one."""

    dims: tuple[int, ...]
    keepdim: bool

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the mean."""
        x = inputs[0]
        for dim in self.dims:
            not_the_batch(dim, x)
        return x.mean(dim=self.dims, keepdim=self.keepdim), (tuple(x.shape),)

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Spread the gradient evenly."""
        shape: tuple[int, ...] = kept[0]  # type: ignore[assignment]
        dims = {dim % len(shape) for dim in self.dims}
        kept_ones = [1 if dim in dims else width for dim, width in enumerate(shape)]
        share = grad.reshape(kept_ones) / math.prod(shape[dim] for dim in dims)
        return (channels_last(share.expand(shape)),)


@dataclass(frozen=True)
class Reshape(Plain):
    """A change of shape that leaves the batch alone: flatten, squeeze, unsqueeze, view."""

    change: Callable[[torch.Tensor], torch.Tensor]

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the input in its new shape."""
        return self.change(inputs[0]), (tuple(inputs[0].shape),)

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient in the old shape."""
        return (grad.reshape(kept[0]),)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Permute(Plain):
    """Another order of the dimensions, found once their number is known; the batch stays first."""

    order: Callable[[int], tuple[int, ...]]

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the permuted input."""
        order = self.order(inputs[0].dim())
        if order[0] != 0:
            raise batch_mixed()
        return inputs[0].permute(order), ()

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Undo the order."""
        order = self.order(grad.dim())
        return (grad.permute(sorted(range(len(order)), key=order.__getitem__)),)


@dataclass(frozen=True)
class Dropout(Plain):
    """Dropout; it is off unless the network is in training mode.

    Args:
        rate: Probability that an entry becomes zero.
    """

    rate: float
    keeps = "one bit per entry while it is on"

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the input, or what a fresh mask leaves of it."""
        x = inputs[0]
        if run.noise is None or self.rate == 0:
            return x, ()
        # Drawn on the CPU, so that a seed means the same masks on every device.
        stays = (torch.rand(x.shape, generator=run.noise) >= self.rate).to(x.device)
        return x * stays * self.gain, (Bits.of(stays),) if run.keep else ()

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient where the mask let the input through."""
        return (masked(grad, kept[0], run.owned) * self.gain if kept else grad,)

    @property
    def gain(self) -> float:
        """What keeps the mean unchanged."""
        return 1 / (1 - self.rate) if self.rate < 1 else 0.0


@dataclass(frozen=True)
class Transposed(Plain):
    """A linear map without parameters (average pooling) whose transpose autograd works out.

    It keeps the input's shape alone: the transpose of a linear map does not depend on the input.
    """

    apply: Callable[[torch.Tensor], torch.Tensor]

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the mapped input."""
        return self.apply(inputs[0]), (tuple(inputs[0].shape),)

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Apply the transposed map."""
        with torch.enable_grad():
            zeros = grad.new_zeros(kept[0]).requires_grad_(True)  # type: ignore[call-overload]
            found: torch.Tensor = torch.autograd.grad(self.apply(zeros), zeros, grad)[0]
        return (found,)


def _padded(x: torch.Tensor, amounts: Sequence[int], value: float) -> torch.Tensor:
    if len(amounts) > 2 * (x.dim() - 2):
        return functional.pad(x, amounts, value=value)
    padded = functional.pad(x.movedim(1, -1), (0, 0, *amounts), value=value)
    return padded.movedim(-1, 1)
