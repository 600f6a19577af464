"""From a base to its network: raw, folded, and the parameters that a merge moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.base import Base
from fleet.adapt.fold import fold
from fleet.errors import MismatchError
from fleet.models.registry import build

__all__ = ["folded_network", "parameters_of", "raw_network", "with_parameters"]


def raw_network(base: Base) -> nn.Module:
    """Build the base's network with its batch norms, in evaluation mode.

    Raises:
        MismatchError: ``base-weights`` when the arrays do not fit the architecture.
    """
    model = build(base.record.model)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in base.arrays.items()}
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise MismatchError(
            "base-weights",
            f"the base's arrays do not fit the architecture {base.record.model.name}: {error}",
            "The base was made by another version of this model; train it again.",
        ) from error
    return model.eval()


def folded_network(base: Base) -> nn.Module:
    """Build the base's network with its batch norms folded: what is adapted and served."""
    return fold(raw_network(base)).requires_grad_(False)


def parameters_of(network: nn.Module) -> dict[str, NDArray[Any]]:
    """Return all parameters of a network as arrays, by name."""
    return {name: p.detach().cpu().numpy() for name, p in network.named_parameters()}


def with_parameters(network: nn.Module, parameters: Mapping[str, NDArray[Any]]) -> nn.Module:
    """Load arrays into a network's parameters, in place, and return it.

    Raises:
        MismatchError: ``parameter-names`` or ``parameter-shape``.
    """
    own = dict(network.named_parameters())
    if own.keys() != parameters.keys():
        missing = sorted(own.keys() ^ parameters.keys())
        raise MismatchError("parameter-names", f"parameters differ in {', '.join(missing[:5])}")
    for name, array in parameters.items():
        if tuple(own[name].shape) != array.shape:  # copy_ would broadcast it without a word
            raise MismatchError(
                "parameter-shape",
                f"{name} is {tuple(own[name].shape)} in this network, not {array.shape}",
            )
    with torch.no_grad():
        for name, array in parameters.items():
            own[name].copy_(torch.from_numpy(np.array(array)))
    return network
