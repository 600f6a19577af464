"""The lean network: a drop-in for what :func:`fleet.adapt.attach.attach` gives.

Its forward pass is one ``torch.autograd.Function`` around the whole folded network, whose backward
is the tape's; any optimiser and any loss train it. Outputs and gradients are those of plain
autograd; what is kept between the two passes is a small part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from fleet.adapt.attach import Attached, attach
from fleet.adapt.fold import Convolution
from fleet.adapt.frames import Frame
from fleet.adapt.lean.convolution import Convolve
from fleet.adapt.lean.graph import Refused, build
from fleet.adapt.lean.layout import channels_last
from fleet.adapt.lean.tape import Record, Tape, saved_bytes
from fleet.adapt.state import CoreState
from fleet.errors import ModelError

__all__ = ["SLICE_WINDOWS", "LeanAttached", "LeanNetwork", "Note", "attach_lean"]

# Windows per slice on a CPU. Half as many saves 40 % of the peak for 5 to 10 % of the time.
SLICE_WINDOWS = 64


@dataclass(frozen=True)
class Note:
    """How one layer or call is trained.

    Args:
        name: The layer's name, or the call's.
        lean: Whether its backward is hand-written.
        keeps: What it saves for the backward pass.
        reason: Why it falls back; empty where it is lean.
    """

    name: str
    lean: bool
    keeps: str
    reason: str = ""

    def __str__(self) -> str:
        how = "lean" if self.lean else f"plain autograd ({self.reason})"
        return f"{self.name}: {how}, keeps {self.keeps}"


class LeanNetwork(nn.Module):
    """A folded network whose backward pass is hand-written.

    In training mode dropout is on, with masks from :meth:`seed_dropout`; batch norms are folded, so
    nothing else depends on the mode. It starts in evaluation mode.

    Args:
        network: Attached network, see :func:`fleet.adapt.attach.attach`.
        parameters: Its trainable parameters by entry name.
        slice_windows: Windows that run together; None for :data:`SLICE_WINDOWS` on a CPU and the
            whole batch elsewhere. The results do not depend on it.
        quick: Whether frozen kernels that suit run with fewer products, equal up to rounding; see
            :class:`fleet.adapt.lean.convolution.Convolve`. Then not for use from many threads.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        slice_windows: int | None = None,
        *,
        quick: bool = False,
    ) -> None:
        super().__init__()
        if slice_windows is not None and slice_windows < 1:
            raise ModelError("slice-windows", f"a slice has 1 window or more, not {slice_windows}")
        self.network = network
        self.slice_windows = slice_windows
        # Bytes kept by the last forward pass for its backward pass.
        self.saved_bytes = 0
        self._entries = dict(parameters)
        _lay_out(network, channels_last)
        self._tape: Tape | None = None
        self._refused = ""
        self._noise = torch.Generator().manual_seed(0)
        try:
            tape = build(network, self._entries)
            self._tape = _quickened(tape) if quick else tape
        except Refused as refused:
            self._refused = str(refused)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits ``(batch, classes)`` of windows ``(batch, channels, ...)``."""
        if self._tape is None:
            plain: torch.Tensor = self.network(x)
            return plain
        if not torch.is_grad_enabled():
            return self._tape.forward(x, self.slice_of(x), noise=self._mask_source())[0]
        run: Any = _Run.apply
        out: torch.Tensor = run(x, self, *self._entries.values())
        return out

    def explain(self) -> tuple[Note, ...]:
        """Say of each layer and call, in order, whether it is lean and what it keeps.

        A layer below everything that is trained keeps nothing, whatever its kind.
        """
        if self._tape is None:
            return (Note("the whole network", False, "what plain autograd saves", self._refused),)
        wanted = self._tape.wanted(input_gradient=False)
        return tuple(
            Note(
                step.name,
                not step.reason,
                step.op.keeps if step.output in wanted else "nothing",
                step.reason,
            )
            for step in self._tape.steps
        )

    @property
    def tape(self) -> Tape | None:
        """Its operations; None where plain autograd runs the whole network."""
        return self._tape

    def seed_dropout(self, seed: int) -> None:
        """Start the dropout masks anew from ``seed``."""
        self._noise.manual_seed(seed)

    def slice_of(self, x: torch.Tensor) -> int:
        """Return the windows per slice for a batch like ``x``."""
        assert self._tape is not None
        if not self._tape.sliceable or (self.slice_windows is None and x.device.type != "cpu"):
            return max(len(x), 1)
        return self.slice_windows or SLICE_WINDOWS

    def _mask_source(self) -> torch.Generator | None:
        return self._noise if self.training else None


def _quickened(tape: Tape) -> Tape:
    """Return the same operations, frozen kernels with fewer products."""
    quick = (
        replace(step, op=replace(step.op, quick=True)) if isinstance(step.op, Convolve) else step
        for step in tape.steps
    )
    return Tape(tuple(quick), tape.output)


class _Run(torch.autograd.Function):
    """The whole network as one node of autograd's graph."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, lean: LeanNetwork, *parameters: torch.Tensor
    ) -> torch.Tensor:
        tape, ctx.lean, ctx.size = lean._tape, lean, lean.slice_of(x)
        assert tape is not None
        ctx.wanted = tape.wanted(input_gradient=ctx.needs_input_grad[0])
        # Their values are read again backwards; this makes autograd notice if one has changed.
        ctx.save_for_backward(*parameters)
        y, ctx.records = tape.forward(x.detach(), ctx.size, ctx.wanted, lean._mask_source())
        lean.saved_bytes = saved_bytes(ctx.records)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        lean, records = ctx.lean, _take(ctx)
        _ = ctx.saved_tensors
        found, dx = lean._tape.backward(grads[0], ctx.size, records, ctx.wanted)
        return dx, None, *(found.get(name) for name in lean._entries)


def _lay_out(network: nn.Module, layout: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Give frozen kernels another order in memory: what oneDNN reads fastest, or PyTorch's own."""
    for layer in network.modules():
        if isinstance(layer, Convolution) and not layer.weight.requires_grad:
            layer.weight.data = layout(layer.weight.data)


def _take(ctx: Any) -> list[Record]:
    """Return what the forward pass kept, once: going backwards frees it."""
    records: list[Record] = ctx.records
    if not records:
        raise RuntimeError("the lean network was run backwards twice; what it kept is freed")
    return records


class LeanAttached(Attached):
    """An attached network whose module is a :class:`LeanNetwork`."""

    def detach(self) -> nn.Module:
        """Return the folded network with its dense layers back in place, unmoved."""
        lean = self.module
        assert isinstance(lean, LeanNetwork)
        _lay_out(lean.network, torch.Tensor.contiguous)
        return Attached(lean.network, self.parameters, self.origin).detach()

    @property
    def lean(self) -> LeanNetwork:
        """The module, by its own type."""
        assert isinstance(self.module, LeanNetwork)
        return self.module


def attach_lean(
    folded: nn.Module,
    frames: Mapping[str, Frame],
    state: CoreState,
    *,
    dtype: torch.dtype,
    slice_windows: int | None = None,
) -> LeanAttached:
    """Copy a folded network and make exactly the entries of ``state`` trainable, leanly.

    The same arguments, entries and errors as :func:`fleet.adapt.attach.attach`.

    Args:
        folded: Folded network; not changed.
        frames: Frame by layer name.
        state: Where training starts.
        dtype: Dtype to compute in.
        slice_windows: See :class:`LeanNetwork`.
    """
    plain = attach(folded, frames, state, dtype=dtype)
    network = LeanNetwork(plain.module, plain.parameters, slice_windows)
    return LeanAttached(network, plain.parameters, plain.origin)
