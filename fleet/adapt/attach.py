"""Attach: a folded network whose trainable parameters are exactly a core state's entries.

An adapted layer computes ``y = u + C·z + b`` with ``u = conv(x, K0)``. In the ``svd`` frame the
bottleneck is read off the frozen output, ``z = M·u`` (no second convolution); in every other frame,
and where the kernel moves too (``core+full``), it is an r-channel convolution of its own,
``z = conv(x, S)``. Training always runs on the immutable ``K0`` with the core starting at the
release's; what a device sends is the difference.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from fleet.adapt.calibrate import capped_ranks, make_frames
from fleet.adapt.core_layer import (
    CoreLayer,
    FactorLayer,
    adaptable_layers,
    replace,
    single_thread,
)
from fleet.adapt.frames import Frame
from fleet.adapt.merge import check_change
from fleet.adapt.state import CHANGE_SUFFIX, CORE_SUFFIX, CoreState
from fleet.errors import MismatchError

__all__ = [
    "Attached",
    "CoreLayer",
    "adaptable_layers",
    "attach",
    "capped_ranks",
    "make_frames",
    "single_thread",
]


@dataclass(frozen=True, eq=False)
class Attached:
    """A network ready to train.

    Args:
        module: The folded network in evaluation mode, adapted layers replaced.
        parameters: The only parameters that require gradients, by entry name of the state.
        origin: The base's value of each dense entry; cores start from zero.
    """

    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    origin: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def state(self) -> CoreState:
        """Return where the parameters are now, relative to the base."""
        arrays = {}
        for name, parameter in self.parameters.items():
            value = parameter.detach()
            if name in self.origin:
                value = value - self.origin[name].to(value)
            arrays[name] = value.cpu().numpy()
        return CoreState.of(arrays)

    def detach(self) -> nn.Module:
        """Return the folded network with its dense layers back in place, unmoved."""
        for name, module in list(self.module.named_modules()):
            if isinstance(module, CoreLayer | FactorLayer):
                replace(self.module, name, module.layer)
        return self.module


def attach(
    folded: nn.Module, frames: Mapping[str, Frame], state: CoreState, *, dtype: torch.dtype
) -> Attached:
    """Copy a folded network and make exactly the entries of ``state`` trainable.

    Args:
        folded: Folded network; not changed.
        frames: Frame by layer name; at least those that the state's cores name.
        state: Where training starts. ``LAYER.core`` entries are cores, ``LAYER.suffix`` entries
            beside them change the frame's suffix, others are dense deltas of the parameter that
            they name.
        dtype: Dtype to compute in; float64 serves as an oracle.

    Raises:
        MismatchError: ``unknown-entry`` when an entry names no layer or parameter, ``core-shape``
            or ``suffix-shape`` when one does not fit its layer.
        FrameError: ``rank-too-large`` or ``frame-not-nested`` when it does not fit its frame.
    """
    module = copy.deepcopy(folded).to(dtype).requires_grad_(False).eval()
    dense = dict(module.named_parameters())
    parameters: dict[str, nn.Parameter] = {}
    origin: dict[str, torch.Tensor] = {}
    # A layer's core comes before the change of its suffix: entries are sorted.
    for name, array in state.arrays.items():
        value = torch.from_numpy(np.array(array)).to(dtype)
        layer, _, leaf = name.rpartition(".")
        if f".{leaf}" == CORE_SUFFIX and layer in frames:
            outputs = dense[f"{layer}.weight"].shape[0]
            if array.ndim != 2 or array.shape[0] != outputs:
                raise MismatchError(
                    "core-shape",
                    f"the core {name} of a layer with {outputs} outputs is (outputs, rank), "
                    f"not {array.shape}",
                )
            frame = frames[layer].truncated(array.shape[1])
            moving = f"{layer}.weight" in state.arrays
            adapted = CoreLayer(module.get_submodule(layer), frame, value, moving=moving)
            replace(module, layer, adapted)
            parameters[name] = adapted.core
        elif f".{leaf}" == CHANGE_SUFFIX and layer + CORE_SUFFIX in parameters:
            both = _both_factors(module.get_submodule(layer), frames[layer], value)
            replace(module, layer, both)
            parameters |= {layer + CORE_SUFFIX: both.core, name: both.change}
        elif name in dense and dense[name].shape == value.shape:
            dense[name].data.add_(value)
            dense[name].requires_grad_(True)
            parameters[name] = dense[name]
            origin[name] = folded.get_parameter(name).detach()
        else:
            raise MismatchError(
                "unknown-entry",
                f"the state's entry {name} {array.shape} fits no layer of this base",
            )
    return Attached(module, parameters, origin)


def _both_factors(adapted: nn.Module, frame: Frame, change: torch.Tensor) -> FactorLayer:
    """Return a layer that trains the change of its suffix beside the core that it has."""
    assert isinstance(adapted, CoreLayer)
    core = adapted.core.detach()
    wanted = (core.shape[1], *adapted.layer.get_parameter("weight").shape[1:])
    check_change(tuple(change.shape), wanted)
    return FactorLayer(adapted.layer, frame.truncated(core.shape[1]), core, change)
