"""Full: every weight and bias of the folded network; batch norms are frozen, folded or not."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fleet.adapt.fold import ChannelAffine
from fleet.adapt.frames import Frame
from fleet.adapt.state import Layout
from fleet.peft.method import Method, trainable

__all__ = ["full"]


def _layout(network: nn.Module, frames: Mapping[str, Frame]) -> Layout:
    frozen = {
        f"{name}.{leaf}"
        for name, module in network.named_modules()
        if isinstance(module, ChannelAffine)
        for leaf, _ in module.named_parameters()
    }
    return trainable(network, {name for name, _ in network.named_parameters()} - frozen)


full = Method(
    name="full",
    summary="all weights of the folded network",
    layout=_layout,
    optimiser="sgd",
    rates=(0.001, 0.003, 0.01, 0.03, 0.1),
    default_rate=0.01,
    lean=False,
)
