"""Optimisers of local training: those of ``torch.optim``, to the bit, without its import.

The first optimiser of ``torch.optim`` that a process makes imports PyTorch's compiler, which is
more than all that a device trains. These do the same arithmetic in the same order, and what they
remember can be saved, so that a training that was cut off goes on as if it had not been.

Sources: ``torch.optim.SGD`` (https://pytorch.org/docs/stable/generated/torch.optim.SGD.html),
``torch.optim.Adam`` (https://pytorch.org/docs/stable/generated/torch.optim.Adam.html) and
``torch.optim.AdamW`` (https://pytorch.org/docs/stable/generated/torch.optim.AdamW.html), all with
``foreach=False``; Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fleet.errors import MismatchError

__all__ = ["SGD", "Adam", "AdamW", "OptimiserName", "Rule", "Stepper", "rule_of"]

OptimiserName = Literal["sgd", "adam"]

# Keys of what :meth:`Stepper.export` returns.
PARAMETER, STEP, MOMENT = "parameter/", "moment/step/", "moment/"


class Rule(Protocol):
    """How one parameter follows its gradient."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the moments that it keeps of a parameter from its first step on."""
        ...

    def move(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        moments: dict[str, torch.Tensor],
        step: int,
    ) -> None:
        """Take one step in place.

        Args:
            parameter: What moves.
            gradient: Of its shape and dtype; not changed.
            moments: By kind, of its shape and dtype; empty in the first step.
            step: Number of this step of this parameter, from 1.
        """
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent, without dampening, Nesterov or weight decay.

    Args:
        learning_rate: Step size.
        momentum: What is left of the velocity after a step.
    """

    learning_rate: float
    momentum: float = 0.9

    @property
    def kinds(self) -> tuple[str, ...]:
        """The velocity; nothing without momentum."""
        return ("velocity",) if self.momentum else ()

    def move(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        moments: dict[str, torch.Tensor],
        step: int,
    ) -> None:
        """Take one step, see :class:`Rule`."""
        if self.momentum and step == 1:
            moments["velocity"] = gradient = gradient.clone()
        elif self.momentum:
            gradient = moments["velocity"].mul_(self.momentum).add_(gradient)
        parameter.add_(gradient, alpha=-self.learning_rate)


@dataclass(frozen=True)
class Adam:
    """Adam, algorithm 1 of the paper.

    Args:
        learning_rate: Step size.
        betas: Decay of the two moments.
        epsilon: Added to the root of the second one.
    """

    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8

    @property
    def kinds(self) -> tuple[str, ...]:
        """The running means of the gradient and of its square."""
        return ("mean", "square")

    def move(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        moments: dict[str, torch.Tensor],
        step: int,
    ) -> None:
        """Take one step, see :class:`Rule`."""
        if step == 1:
            moments |= {kind: torch.zeros_like(parameter) for kind in self.kinds}
        mean, square = moments["mean"], moments["square"]
        fast, slow = self.betas
        mean.lerp_(gradient, 1 - fast)
        square.mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
        root = (square.sqrt() / (1 - slow**step) ** 0.5).add_(self.epsilon)
        parameter.addcdiv_(mean, root, value=-(self.learning_rate / (1 - fast**step)))


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay.

    Args:
        weight_decay: Times the learning rate, the share of a parameter that a step takes away.
    """

    weight_decay: float = 0.01

    def move(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        moments: dict[str, torch.Tensor],
        step: int,
    ) -> None:
        """Take one step, see :class:`Rule`."""
        parameter.mul_(1 - self.learning_rate * self.weight_decay)
        super().move(parameter, gradient, moments, step)


def rule_of(name: OptimiserName, learning_rate: float, momentum: float) -> Rule:
    """Return an optimiser's rule by its name in plans; ``momentum`` is SGD's."""
    return Adam(learning_rate) if name == "adam" else SGD(learning_rate, momentum)


class Stepper:
    """Moves parameters in place by their ``grad``; a parameter without one stays as it is.

    Args:
        parameters: What moves, by name.
        rule: How.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor], rule: Rule) -> None:
        self.parameters = dict(parameters)
        self.rule = rule
        # By parameter: the steps it has taken, and its moments by kind.
        self.steps = dict.fromkeys(self.parameters, 0)
        self.moments: dict[str, dict[str, torch.Tensor]] = {n: {} for n in self.parameters}

    def clear(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step."""
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                self.steps[name] += 1
                self.rule.move(parameter, parameter.grad, self.moments[name], self.steps[name])

    def export(self) -> dict[str, NDArray[Any]]:
        """Return copies of all that the next steps depend on.

        Returns:
            ``parameter/NAME`` and, for a parameter that has moved, ``moment/KIND/NAME``, of the
            parameter's shape and dtype; ``moment/step/NAME`` ``()`` int64, the steps it has taken.
        """
        tensors = {PARAMETER + name: tensor for name, tensor in self.parameters.items()}
        for name, moments in self.moments.items():
            tensors |= {f"{MOMENT}{kind}/{name}": tensor for kind, tensor in moments.items()}
        copies = {key: np.array(t.detach().cpu().numpy(), order="C") for key, t in tensors.items()}
        return copies | {STEP + name: np.array(n, np.int64) for name, n in self.steps.items()}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go back to where :meth:`export` was called, on parameters and rule of the same kind.

        Raises:
            MismatchError: ``progress-mismatch`` when names, shapes, dtypes or counts are not those
                of these parameters under this rule. Then nothing has changed.
        """
        steps = {name: _count(arrays, STEP + name) for name in self.parameters}
        wanted = {PARAMETER + name: tensor for name, tensor in self.parameters.items()}
        for name, count in steps.items():
            kinds = self.rule.kinds if count else ()
            wanted |= {f"{MOMENT}{kind}/{name}": self.parameters[name] for kind in kinds}
        odd = sorted(arrays.keys() ^ {*wanted, *(STEP + name for name in steps)})
        if odd:
            found = "is not of this training" if odd[0] in arrays else "is missing"
            raise _mismatch(f"{odd[0]} {found} ({len(odd)} such)")
        values = {key: _like(tensor, key, arrays[key]) for key, tensor in wanted.items()}
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(values[PARAMETER + name])
        self.steps = steps
        self.moments = {
            name: {kind: values[f"{MOMENT}{kind}/{name}"] for kind in self.rule.kinds if count}
            for name, count in steps.items()
        }


def _count(arrays: Mapping[str, NDArray[Any]], key: str) -> int:
    count = arrays.get(key)
    if count is None or count.shape != () or count.dtype != np.int64 or count < 0:
        shown = "missing" if count is None else f"{count.dtype} {count.tolist()!s:.40}"
        raise _mismatch(f"{key} counts steps in one int64 from 0, it is {shown}")
    return int(count)


def _like(tensor: torch.Tensor, key: str, array: NDArray[Any]) -> torch.Tensor:
    """Return the array's values laid out in memory as ``tensor`` is."""
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if array.shape != shape or str(array.dtype) != dtype:
        raise _mismatch(f"{key} is {shape} {dtype}, not {array.shape} {array.dtype}")
    return torch.empty_like(tensor, requires_grad=False).copy_(torch.from_numpy(np.array(array)))


def _mismatch(problem: str) -> MismatchError:
    return MismatchError(
        "progress-mismatch",
        f"the saved progress does not fit this training: {problem}",
        "Drop it and train from the release.",
    )
