"""Core: the output-side tensor-train core of every convolution (LoRA-Edge, arXiv 2511.03765)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fleet.adapt.frames import Frame
from fleet.adapt.state import CORE_SUFFIX, Layout
from fleet.peft.method import Method

__all__ = ["core"]


def _layout(network: nn.Module, frames: Mapping[str, Frame]) -> Layout:
    return Layout.of(
        {
            name + CORE_SUFFIX: (network.get_parameter(f"{name}.weight").shape[0], frame.rank)
            for name, frame in frames.items()
        }
    )


core = Method(
    name="core",
    summary="one (out, rank) core per convolution; head, biases and kernels frozen",
    layout=_layout,
    optimiser="sgd",
    rates=(0.01, 0.03, 0.1, 0.3, 1.0),
    default_rate=0.1,
)
