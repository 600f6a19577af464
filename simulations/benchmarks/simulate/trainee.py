"""One network and the parameters that federated averaging moves: plain PyTorch, nothing of ours.

What travels is one flat vector of the trained parameters. ``full`` trains every parameter of the
folded network, ``core`` the cores of the attached one in ordinary autograd. Batch norms are folded
into the convolutions for both, which makes full fine-tuning faster and its average exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from fleet.adapt.attach import attach
from fleet.adapt.base import Base
from fleet.adapt.network import folded_network
from fleet.adapt.state import CoreState
from fleet.measure.f1 import confusion
from fleet.peft.registry import find

__all__ = ["MOMENTUM", "Trainee", "counts_of", "trainee_of"]

# What server.app asks of every device.
MOMENTUM = 0.9
EVALUATION_BATCH = 256


@dataclass(frozen=True, eq=False)
class Trainee:
    """A network whose parameters are set, trained and read, device after device.

    Args:
        module: The network.
        parameters: What is trained, in the order of the flat vector.
    """

    module: nn.Module
    parameters: tuple[nn.Parameter, ...]

    def load(self, vector: torch.Tensor) -> None:
        """Set the trained parameters from a flat vector, which is copied."""
        vector_to_parameters(vector.clone(), self.parameters)

    def vector(self) -> torch.Tensor:
        """Return the trained parameters as one flat vector, a new one."""
        return parameters_to_vector(self.parameters).detach()

    def train(
        self, x: torch.Tensor, y: torch.Tensor, order: Iterable[NDArray[np.int64]], rate: float
    ) -> None:
        """Take one SGD step for each index array of ``order`` on windows ``x`` of labels ``y``."""
        stepper = torch.optim.SGD(self.parameters, lr=rate, momentum=MOMENTUM)
        for index in order:
            chosen = torch.from_numpy(index)
            stepper.zero_grad(set_to_none=True)
            loss = functional.cross_entropy(self.module(x[chosen]), y[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            stepper.step()


def trainee_of(base: Base, method: str) -> Trainee:
    """Return the network that ``core`` or ``full`` trains, where the base is."""
    network = folded_network(base)
    if method == "full":
        network.requires_grad_(True)
        return Trainee(network, tuple(network.parameters()))
    zero = CoreState.zero(find(method).layout(network, base.frames))
    attached = attach(network, base.frames, zero, dtype=torch.float32)
    # In the order of the layout, so that the vector is the flat state.
    return Trainee(attached.module, tuple(attached.parameters[n] for n in zero.layout.names))


def counts_of(
    module: nn.Module, x: NDArray[np.float32], y: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Return the confusion counts ``(classes, classes)`` of a network on windows."""
    predicted = [np.zeros(0, np.int64)]
    with torch.inference_mode():
        for start in range(0, len(x), EVALUATION_BATCH):
            part = torch.from_numpy(x[start : start + EVALUATION_BATCH])
            predicted.append(module(part).argmax(dim=-1).numpy())
    return confusion(y, np.concatenate(predicted), classes)
