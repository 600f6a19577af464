"""Max-pooling on a tape: where the largest entry was, in as few bits as a window needs.

Fused with a ReLU before it, two bits per *pooled* entry are all that is kept of both: whether it is
positive, and which of the window's two entries it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from fleet.adapt.lean.bits import Bits
from fleet.adapt.lean.layout import new_like
from fleet.adapt.lean.op import Backward, Forward, Kept
from fleet.adapt.lean.ops import masked

__all__ = ["LARGEST_WINDOW", "MaxPool"]

# Entries of a window that one byte can number.
LARGEST_WINDOW = 256


@dataclass(frozen=True)
class MaxPool:
    """Max-pooling over time or over two dimensions, with the ReLU before it where there is one.

    Args:
        kernel: Window by dimension; at most :data:`LARGEST_WINDOW` entries.
        stride: Step by dimension.
        padding: Padding by dimension.
        dilation: Distance of a window's entries by dimension.
        ceil: Whether a last, incomplete window counts.
        relu: Whether a ReLU is fused in.
        roomy: Whether pairs keep numbers rather than bits: several times faster, 32 times the
            memory.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil: bool = False
    relu: bool = False
    roomy: bool = False

    entries: tuple[str, ...] = ()

    @property
    def pins(self) -> bool:
        """Whether it keeps its output."""
        return self.roomy and self._is_pairs and self.relu

    @property
    def keeps(self) -> str:
        """What is saved, in words."""
        place = "one argmax bit" if self._window == 2 else "one argmax byte"
        return f"{place}{' and one sign bit' if self.relu else ''} per pooled entry"

    def forward(self, inputs: Sequence[torch.Tensor], run: Forward) -> tuple[torch.Tensor, Kept]:
        """Return the pooled input."""
        x = inputs[0]
        if self.roomy and self._is_pairs:
            return self._pairs_with_room(x, run.keep)
        pooled, kept = self._pairs(x, run.keep) if self._is_pairs else self._windows(x, run.keep)
        if self.relu:
            # The largest of rectified entries is the rectified largest entry.
            pooled = pooled.relu_()
            kept = (*kept, Bits.positive(pooled)) if run.keep else ()
        return pooled, kept

    def backward(
        self, grad: torch.Tensor, kept: Kept, run: Backward
    ) -> tuple[torch.Tensor | None, ...]:
        """Return each pooled entry's gradient to the entry that it came from."""
        if self.roomy and self._is_pairs:
            return (self._spread(grad, kept),)
        shape: tuple[int, ...] = kept[0]  # type: ignore[assignment]
        if self.relu:
            grad = masked(grad, kept[2], run.owned)
        place = kept[1].factors() if isinstance(kept[1], Bits) else kept[1]
        assert isinstance(place, torch.Tensor)
        if self._is_pairs:
            full = new_like(grad, shape)
            second = grad * place
            full[..., 1 : 2 * grad.shape[-1] : 2] = second
            full[..., 0 : 2 * grad.shape[-1] : 2] = grad - second
            return (full,)
        flat = self._global(place, shape).flatten(2)
        spread = grad.new_zeros((*shape[:2], math.prod(shape[2:])))
        return (spread.scatter_add_(2, flat, grad.flatten(2)).view(shape),)

    @property
    def _window(self) -> int:
        return math.prod(self.kernel)

    @property
    def _is_pairs(self) -> bool:
        plain = self.padding == (0,) and self.dilation == (1,) and not self.ceil
        return self.kernel == self.stride == (2,) and plain

    def _pairs(self, x: torch.Tensor, keep: bool) -> tuple[torch.Tensor, Kept]:
        length = x.shape[-1] // 2 * 2
        first, second = x[..., 0:length:2], x[..., 1:length:2]
        # Of equals the first one counts, as in PyTorch.
        kept: Kept = (tuple(x.shape), Bits.of(second > first)) if keep else ()
        return torch.maximum(first, second), kept

    def _pairs_with_room(self, x: torch.Tensor, keep: bool) -> tuple[torch.Tensor, Kept]:
        """Pool pairs; keep the output, and ones where the second of a pair was the larger."""
        first, second = _pair(x.movedim(1, -1))
        pooled = torch.maximum(first, second)
        # A comparison written as numbers is vectorised on a CPU, one written as booleans is not.
        later = torch.gt(second, first, out=torch.empty_like(pooled)) if keep else None
        if self.relu:
            pooled.relu_()
        laid = pooled.movedim(-1, 1)
        return laid, (tuple(x.shape), later, laid if self.relu else None) if keep else ()

    def _spread(self, grad: torch.Tensor, kept: Kept) -> torch.Tensor:
        """Undo :meth:`_pairs_with_room`."""
        shape, later, pooled = kept
        assert isinstance(shape, tuple)
        assert isinstance(later, torch.Tensor)
        rows = grad.movedim(1, -1)
        if isinstance(pooled, torch.Tensor):
            rows = torch.ops.aten.threshold_backward(rows, pooled.movedim(1, -1), 0)
        full = rows.new_empty((shape[0], shape[2], shape[1]))
        full[:, rows.shape[1] * 2 :] = 0
        first, second = _pair(full)
        torch.mul(rows, later, out=second)
        torch.sub(rows, second, out=first)
        return full.movedim(-1, 1)

    def _windows(self, x: torch.Tensor, keep: bool) -> tuple[torch.Tensor, Kept]:
        pool = functional.max_pool1d if len(self.kernel) == 1 else functional.max_pool2d
        given = (self.kernel, self.stride, self.padding, self.dilation, self.ceil)
        if not keep:
            return pool(x, *given), ()
        pooled, index = pool(x, *given, return_indices=True)
        place = self._local(index, tuple(x.shape))
        small = Bits.of(place == 1) if self._window == 2 else place.to(torch.uint8)
        return pooled, (tuple(x.shape), small)

    def _local(self, index: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Turn positions in the whole input into positions in each window."""
        place = torch.zeros_like(index)
        for dim, width in enumerate(self.kernel):
            start, inner = self._starts(index, dim), math.prod(shape[3 + dim :])
            at = index // inner % shape[2 + dim]
            place = place * width + (at - start) // self.dilation[dim]
        return place

    def _global(self, place: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Undo :meth:`_local`."""
        place = place.long()
        index = torch.zeros_like(place)
        for dim in range(len(self.kernel)):
            inner = math.prod(self.kernel[dim + 1 :])
            offset = place // inner % self.kernel[dim]
            at = self._starts(place, dim) + offset * self.dilation[dim]
            index = index * shape[2 + dim] + at
        return index

    def _starts(self, like: torch.Tensor, dim: int) -> torch.Tensor:
        """Return where each window begins along a dimension, to be broadcast against ``like``."""
        steps = torch.arange(like.shape[2 + dim], device=like.device)
        starts = steps * self.stride[dim] - self.padding[dim]
        return starts.view(-1, *(1,) * (len(self.kernel) - 1 - dim))


def _pair(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """View the first and the second of each two positions of ``(n, positions, channels)``."""
    length = rows.shape[1] // 2 * 2
    return rows[:, 0:length:2], rows[:, 1:length:2]
