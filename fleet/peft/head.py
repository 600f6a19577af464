"""Head: the last linear layer only, everything before it frozen."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fleet.adapt.frames import Frame
from fleet.adapt.state import Layout
from fleet.models.registry import HEAD
from fleet.peft.method import Method, trainable

__all__ = ["head"]


def _layout(network: nn.Module, frames: Mapping[str, Frame]) -> Layout:
    return trainable(network, {f"{HEAD}.weight", f"{HEAD}.bias"})


head = Method(
    name="head",
    summary="the last linear layer; features frozen",
    layout=_layout,
    optimiser="sgd",
    rates=(0.01, 0.03, 0.1, 0.3, 1.0),
    default_rate=0.1,
)
