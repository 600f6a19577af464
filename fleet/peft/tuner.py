"""One protocol for every way to adapt one network on one device, ours and the rivals.

A :class:`Method` says which entries of the folded network move; that is all that a fleet needs,
because what it trains is linear. Rivals train factors, norms or inserted layers, so a bench asks
less of them: make a network ready (:attr:`Tuner.attach`), say what is trained
(:meth:`Tuned.trainable`), hand back the dense network to serve (:meth:`Tuned.merge`), and say what
an update weighs (:meth:`Tuned.update_bytes`).
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from fleet.adapt.attach import Attached
from fleet.adapt.frames import Frame
from fleet.adapt.merge import merge
from fleet.adapt.network import parameters_of, with_parameters
from fleet.adapt.state import CoreState
from fleet.adapt.train import OptimiserName
from fleet.errors import ModelError
from fleet.models.registry import HEAD
from fleet.peft.method import Method

__all__ = ["ADAM_RATES", "Start", "Tuned", "Tuner", "of_method"]

ADAM_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""The ladder that every method's Adam climbs."""


@dataclass(frozen=True, eq=False)
class Start:
    """What a method starts from; none of it is changed.

    Args:
        raw: The pre-trained network with its batch norms, in evaluation mode.
        folded: ``fold(raw)``: batch norms gone into the convolutions.
        frames: Frames of the folded kernels by layer name; empty for methods without.
        rank: Rank of methods that have one (LoRA, adapter, …).
        seed: Of whatever a method draws at random.
    """

    raw: nn.Module
    folded: nn.Module
    frames: Mapping[str, Frame]
    rank: int
    seed: int


class Tuned(ABC):
    """A network that a method has made ready to train.

    Args:
        module: What runs; its parameters with ``requires_grad`` are trained. Its modes (training,
            evaluation) are as the method wants them and stay so.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what is trained, by name."""
        return {n: p for n, p in self.module.named_parameters() if p.requires_grad}

    def calibrate(self, x: torch.Tensor) -> None:
        """Look at the target's unlabelled training windows once, before training; else nothing.

        Args:
            x: Normalised windows ``(n, channels, window)``.
        """
        return

    @abstractmethod
    def merge(self) -> nn.Module:
        """Return a dense folded network that computes what the trained one does, for serving.

        The graph is that of the folded base: same layers, same cost.

        Raises:
            ModelError: ``cannot-merge`` when the method leaves something beside the network.
        """

    def served(self) -> nn.Module:
        """Return what predicts: the merged network; the trained one where nothing merges."""
        return self.merge()

    def update_bytes(self) -> int:
        """Return the bytes of what a device would send: all trained entries and moved buffers."""
        return sum(p.numel() * p.element_size() for p in self.trainable().values())

    def optimiser(self, name: OptimiserName, learning_rate: float) -> torch.optim.Optimizer:
        """Return a fresh optimiser over what is trained; SGD has momentum 0.9."""
        parameters = list(self.trainable().values())
        if name == "adam":
            return torch.optim.Adam(parameters, lr=learning_rate)
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9)

    def unfreeze(self, names: Iterable[str]) -> None:
        """Train parameters of the network as well, e.g. the head.

        Raises:
            ModelError: ``nothing-to-train`` when there is no such parameter.
        """
        own = dict(self.module.named_parameters())
        for name in names:
            if name not in own:
                raise ModelError("nothing-to-train", f"the network has no parameter {name}")
            own[name].requires_grad_(True)


@dataclass(frozen=True)
class Tuner:
    """One method on the bench.

    Args:
        name: Name in flags and tables.
        summary: One line for people.
        attach: Makes a network ready; raises ModelError where the method cannot do that.
        default_rate: Where its learning-rate sweep starts, one of ``rates``.
        rates: The ladder, ascending; Adam's.
        exact: Whether averaging what devices send is averaging the kernels that they serve.
        ranked: Whether the rank matters.
        framed: Whether frames matter.
        trains: False for a method without gradient steps (AdaBN).
    """

    name: str
    summary: str
    attach: Callable[[Start], Tuned]
    default_rate: float = 1e-2
    rates: tuple[float, ...] = ADAM_RATES
    exact: bool = False
    ranked: bool = False
    framed: bool = False
    trains: bool = True


class _Entries(Tuned):
    """A federated method on one device: entries of the folded network, from zero."""

    def __init__(self, start: Start, attached: Attached, head_factor: float) -> None:
        super().__init__(attached.module)
        self._start = start
        self._attached = attached
        self._head_factor = head_factor

    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self._attached.parameters)

    def optimiser(self, name: OptimiserName, learning_rate: float) -> torch.optim.Optimizer:
        stepper = super().optimiser(name, learning_rate)
        head = [p for n, p in self.trainable().items() if n.startswith(f"{HEAD}.")]
        if head and self._head_factor != 1.0:
            group = stepper.param_groups[0]
            group["params"] = [p for p in group["params"] if all(p is not h for h in head)]
            stepper.add_param_group({"params": head, "lr": learning_rate * self._head_factor})
        return stepper

    def merge(self) -> nn.Module:
        folded = self._start.folded
        merged = merge(parameters_of(folded), self._start.frames, self._attached.state())
        return with_parameters(copy.deepcopy(folded), merged)

    def unfreeze(self, names: Iterable[str]) -> None:
        raise ModelError(
            "nothing-to-train", "a federated method's entries are its layout; combine methods"
        )


def of_method(
    method: Method, *, default_rate: float = 1e-2, ranked: bool = False, head_factor: float = 1.0
) -> Tuner:
    """Put a federated method on the bench.

    Args:
        method: The method.
        default_rate: Where its sweep starts.
        ranked: Whether it has cores.
        head_factor: The head's rate as a multiple of the others': cores live on channels of unit
            response and want ten times the steps of dense weights.
    """

    def attach(start: Start) -> Tuned:
        zero = CoreState.zero(method.layout(start.folded, start.frames))
        attached = method.attach(start.folded, start.frames, zero, dtype=torch.float32)
        return _Entries(start, attached, head_factor)

    return Tuner(
        name=method.name,
        summary=method.summary,
        attach=attach,
        default_rate=default_rate,
        exact=True,
        ranked=ranked,
        framed=ranked,
    )
