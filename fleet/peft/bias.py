"""Bias: the biases of the folded network alone (Ben Zaken et al., BitFit, arXiv 2106.10199).

Folding gives every convolution the shift of its batch norm as a bias, so this is also the additive
half of batch-norm tuning.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fleet.adapt.frames import Frame
from fleet.adapt.state import Layout
from fleet.peft.method import Method, trainable

__all__ = ["bias"]


def _layout(network: nn.Module, frames: Mapping[str, Frame]) -> Layout:
    names = {name for name, _ in network.named_parameters()}
    return trainable(network, {name for name in names if name.rpartition(".")[2] == "bias"})


bias = Method(
    name="bias",
    summary="the biases of all layers; every kernel frozen",
    layout=_layout,
    optimiser="sgd",
    rates=(0.01, 0.03, 0.1, 0.3, 1.0),
    default_rate=0.1,
)
