"""What a training method is: which entries of the folded network move, and how fast.

Everything else (attaching, aggregation, merging, bytes) follows from the layout of the entries, so
every method runs through the same code as the core adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from fleet.adapt.frames import Frame
from fleet.adapt.state import Layout
from fleet.adapt.train import OptimiserName
from fleet.errors import ModelError

__all__ = ["Method", "trainable"]


@dataclass(frozen=True)
class Method:
    """One way to adapt a base.

    Args:
        name: Name in flags, plans and reports.
        summary: One line for people.
        layout: From the folded network and its frames to the layout of what is trained.
        optimiser: Optimiser of local training.
        rates: Ladder of learning rates that a rehearsal climbs, ascending.
        default_rate: Where it starts, and the rate where nothing can be rehearsed.
    """

    name: str
    summary: str
    layout: Callable[[nn.Module, Mapping[str, Frame]], Layout]
    optimiser: OptimiserName
    rates: tuple[float, ...]
    default_rate: float


def trainable(network: nn.Module, names: set[str]) -> Layout:
    """Return the layout of dense deltas of the named parameters.

    Raises:
        ModelError: ``nothing-to-train`` when the network has none of them.
    """
    found = {name: tuple(p.shape) for name, p in network.named_parameters() if name in names}
    if not found:
        raise ModelError(
            "nothing-to-train",
            f"{type(network).__name__} has none of {', '.join(sorted(names)[:5])}",
            "A backbone's last layer is an nn.Linear called head.",
        )
    return Layout.of(found)
