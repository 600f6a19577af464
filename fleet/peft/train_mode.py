"""Batch norm in train mode: statistics of each batch normalise it, running statistics move.

``full-bn`` is full fine-tuning as published: every weight of the raw network, batch norms included.
``core-bn`` trains cores on the raw kernels the same way. What moves without a gradient (the running
statistics) has to be sent as well, and averaging it is not averaging kernels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import nn

from fleet.adapt.attach import Attached, attach
from fleet.adapt.fold import BatchNorm, fold
from fleet.adapt.frames import Frame, FrameKind
from fleet.adapt.merge import merge
from fleet.adapt.network import parameters_of, with_parameters
from fleet.adapt.state import CoreState
from fleet.errors import ModelError
from fleet.peft.core import core
from fleet.peft.tuner import Start, Tuned, Tuner

__all__ = ["core_bn", "full_bn"]


class _TrainMode(Tuned):
    """Batch norms in train mode; what is served is folded from their running statistics."""

    def __init__(self, module: nn.Module) -> None:
        for norm in _norms(module):
            norm.train()
        super().__init__(module)

    def merge(self) -> nn.Module:
        return fold(self.module).requires_grad_(False)

    def update_bytes(self) -> int:
        """Return the bytes of what is trained and of the running statistics."""
        moved = [
            t for norm in _norms(self.module) for n, t in norm.named_buffers() if "running" in n
        ]
        return super().update_bytes() + sum(t.numel() * t.element_size() for t in moved)


class _CoreTrainMode(_TrainMode):
    def __init__(self, raw: nn.Module, frames: dict[str, Frame], attached: Attached) -> None:
        super().__init__(attached.module)
        self._raw, self._frames, self._attached = raw, frames, attached

    def merge(self) -> nn.Module:
        moved = merge(parameters_of(self._raw), self._frames, self._attached.state())
        merged = with_parameters(copy.deepcopy(self._raw), moved)
        statistics = {n: b for n, b in self.module.named_buffers() if "running" in n}
        unfrozen = {n: p.detach() for n, p in self.trainable().items()}  # e.g. the head
        for name, tensor in (*merged.named_buffers(), *merged.named_parameters()):
            if name in statistics or name in unfrozen:
                tensor.data.copy_((statistics | unfrozen)[name])
        return fold(merged).requires_grad_(False)


def _attach_full(start: Start) -> Tuned:
    return _TrainMode(copy.deepcopy(start.raw).requires_grad_(True))


def _attach_core(start: Start) -> Tuned:
    from fleet.adapt.calibrate import make_frames

    if not start.frames:
        raise ModelError("no-frames", "core-bn needs frames", "")
    kind: FrameKind = next(iter(start.frames.values())).kind
    if kind in ("gradient", "people"):
        raise ModelError(
            "raw-frames",
            f"core-bn makes frames of the raw kernels, which a {kind} frame is not made of",
            "Use svd, tt or random.",
        )
    ranks = {name: frame.rank for name, frame in start.frames.items()}
    frames = make_frames(start.raw, kind, ranks)
    zero = CoreState.zero(core.layout(start.raw, frames))
    attached = attach(start.raw, frames, zero, dtype=torch.float32)
    return _CoreTrainMode(start.raw, frames, attached)


def _norms(module: nn.Module) -> Iterable[nn.Module]:
    return (m for m in module.modules() if isinstance(m, BatchNorm))


full_bn = Tuner(
    name="full-bn",
    summary="all weights of the raw network, batch norm in train mode",
    attach=_attach_full,
    default_rate=1e-3,
)
core_bn = Tuner(
    name="core-bn",
    summary="cores on the raw kernels, batch norm in train mode; unscaled frames",
    attach=_attach_core,
    ranked=True,
    framed=True,
)
