"""Optimisers over stacked parameters: every device as if it were alone.

The arithmetic is that of ``torch.optim`` in its order, with one mask per step: a device that has no
batch left neither moves nor ages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from fleet.adapt.train import OptimiserName

__all__ = ["StackedAdam", "StackedSGD", "Stepper", "stepper"]


class Stepper(Protocol):
    """Moves stacked parameters in place."""

    def step(self, gradients: Mapping[str, torch.Tensor], active: torch.Tensor) -> None:
        """Take one step.

        Args:
            gradients: ``(devices, *shape)`` by entry name.
            active: ``(devices,)`` boolean: who takes it. The others keep their bits.
        """
        ...


def stepper(
    parameters: Mapping[str, torch.Tensor],
    name: OptimiserName,
    learning_rate: float,
    momentum: float,
) -> Stepper:
    """Return a fresh optimiser by its name in plans; ``momentum`` is SGD's."""
    if name == "adam":
        return StackedAdam(parameters, learning_rate)
    return StackedSGD(parameters, learning_rate, momentum)


class StackedSGD:
    """Stochastic gradient descent with momentum, without dampening.

    Args:
        parameters: ``(devices, *shape)`` by entry name; changed in place.
        learning_rate: Step size.
        momentum: What is left of the velocity after a step.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        learning_rate: float,
        momentum: float = 0.9,
    ) -> None:
        self.parameters = dict(parameters)
        self.learning_rate = learning_rate
        self.momentum = momentum
        self._velocity = _zeros(parameters)

    def step(self, gradients: Mapping[str, torch.Tensor], active: torch.Tensor) -> None:
        """Take one step of the active devices, see :class:`Stepper`."""
        for name, parameter in self.parameters.items():
            velocity = self._velocity[name]
            faster = (velocity * self.momentum).add_(gradients[name])
            moved = torch.add(parameter, faster, alpha=-self.learning_rate)
            _write(velocity, faster, active)
            _write(parameter, moved, active)


class StackedAdam:
    """Adam (Kingma & Ba, arXiv 1412.6980) with a step count per device.

    Args:
        parameters: ``(devices, *shape)`` by entry name; changed in place.
        learning_rate: Step size.
        betas: Decay of the two moments.
        epsilon: Added to the root of the second one.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
    ) -> None:
        self.parameters = dict(parameters)
        self.learning_rate = learning_rate
        self.betas = betas
        self.epsilon = epsilon
        self._first, self._second = _zeros(parameters), _zeros(parameters)
        self._steps: torch.Tensor | None = None

    def step(self, gradients: Mapping[str, torch.Tensor], active: torch.Tensor) -> None:
        """Take one step of the active devices, see :class:`Stepper`."""
        if self._steps is None:
            self._steps = torch.zeros(len(active), dtype=torch.float64, device=active.device)
        self._steps += active
        fast, slow = (1 - beta**self._steps for beta in self.betas)
        for name, parameter in self.parameters.items():
            grad, first, second = gradients[name], self._first[name], self._second[name]
            mean = first.lerp(grad, 1 - self.betas[0])
            square = (second * self.betas[1]).addcmul_(grad, grad, value=1 - self.betas[1])
            root = (square.sqrt() / _lifted(slow.sqrt(), square)).add_(self.epsilon)
            moved = parameter - _lifted(self.learning_rate / fast, mean) * mean / root
            for old, new in ((first, mean), (second, square), (parameter, moved)):
                _write(old, new, active)


def _zeros(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}


def _lifted(by_device: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return ``(devices,)`` values to be broadcast against a stack, in its dtype."""
    return by_device.to(like.dtype).view(-1, *(1,) * (like.dim() - 1))


def _write(old: torch.Tensor, new: torch.Tensor, active: torch.Tensor) -> None:
    """Write the active devices' new values; a product with a mask would spread their NaN."""
    old.copy_(torch.where(active.view(-1, *(1,) * (old.dim() - 1)), new, old))
