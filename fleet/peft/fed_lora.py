"""Federated LoRA: both factors trained, and averaged each on its own (FedIT, arXiv 2305.05644).

    K = K0 + C · (S + ΔS)         B = C, A = S + ΔS

B starts at zero and A at the frame's suffix, which all devices share: on a ``random`` frame that is
LoRA's random A (Hu et al., arXiv 2106.09685). The scaling ``α/r`` is 1, as of every frame. Frames
are calibrated to unit response; a step on A moves that response by the energy of a whole input
patch, so the rates are those of whole kernels: at 0.1, a core's, training collapsed. The product
is not linear in what is trained:

    mean(C_d) · mean(A_d)  ≠  mean(C_d · A_d)

so a release is not the mean of what devices found. That is what FedIT does, and what FFA-LoRA
(arXiv 2403.12313) and cores, whose A is frozen, avoid. It is here to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from fleet.adapt.frames import Frame
from fleet.adapt.state import CHANGE_SUFFIX, Layout
from fleet.peft.core import core
from fleet.peft.method import Method

__all__ = ["lora"]


def _layout(network: nn.Module, frames: Mapping[str, Frame]) -> Layout:
    changes = {
        name + CHANGE_SUFFIX: (frame.rank, *network.get_parameter(f"{name}.weight").shape[1:])
        for name, frame in frames.items()
    }
    return Layout.of(dict(core.layout(network, frames).entries) | changes)


lora = Method(
    name="lora",
    summary="both low-rank factors of every convolution; averaged each on its own (FedIT)",
    layout=_layout,
    optimiser="sgd",
    rates=(0.001, 0.003, 0.01, 0.03, 0.1),
    default_rate=0.01,
    lean=False,
)
