"""What a training method is: which entries of the folded network move, and how fast.

Everything else (attaching, aggregation, merging, bytes) follows from the layout of the entries, so
every method runs through the same code as the core adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from fleet.adapt.attach import Attached, attach
from fleet.adapt.frames import Frame
from fleet.adapt.lean.module import attach_lean
from fleet.adapt.state import CoreState, Layout
from fleet.adapt.train import OptimiserName
from fleet.errors import ModelError

__all__ = ["Method", "combined", "trainable"]


@dataclass(frozen=True)
class Method:
    """One way to adapt a base.

    Args:
        name: Name in flags, plans and reports.
        summary: One line for people.
        layout: From the folded network and its frames to the layout of what is trained.
        optimiser: Optimiser of local training.
        rates: Ladder of learning rates that a rehearsal climbs, ascending.
        lean: Whether training runs on the hand-written backward pass; it pays where few entries
            move, and not where every kernel needs its own gradient.
        default_rate: Where it starts, and the rate where nothing can be rehearsed.
    """

    name: str
    summary: str
    layout: Callable[[nn.Module, Mapping[str, Frame]], Layout]
    optimiser: OptimiserName
    rates: tuple[float, ...]
    default_rate: float
    lean: bool = True

    def attach(
        self,
        network: nn.Module,
        frames: Mapping[str, Frame],
        state: CoreState,
        *,
        dtype: torch.dtype,
    ) -> Attached:
        """Return a copy of the folded network whose trainable parameters start at ``state``."""
        how = attach_lean if self.lean else attach
        return how(network, frames, state, dtype=dtype)


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


def combined(first: Method, second: Method) -> Method:
    """Return the method that trains what either of two trains, under the first one's rates."""

    def layout(network: nn.Module, frames: Mapping[str, Frame]) -> Layout:
        both = (*first.layout(network, frames).entries, *second.layout(network, frames).entries)
        return Layout.of(dict(both))

    return replace(
        first,
        name=f"{first.name}+{second.name}",
        summary=f"{first.summary.partition(';')[0]}, and {second.summary.partition(';')[0]}",
        layout=layout,
        lean=first.lean and second.lean,
    )
