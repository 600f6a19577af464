"""Local training: a few epochs of one device over its own windows.

The only randomness is the order of the windows, drawn from a named seed; the optimiser starts fresh
each round, because its state describes a release that the fleet has left.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fleet.adapt.attach import Attached
from fleet.adapt.lean.plan import accumulate
from fleet.errors import RoundError

__all__ = ["OptimiserName", "TrainingResult", "batches", "diverged", "predict", "train"]

OptimiserName = Literal["sgd", "adam"]


@dataclass(frozen=True)
class TrainingResult:
    """What local training says of itself.

    Args:
        steps: Optimiser steps taken.
        loss: Mean cross-entropy over all steps, in nats.
    """

    steps: int
    loss: float


def train(
    attached: Attached,
    x: torch.Tensor,
    y: torch.Tensor,
    order: Iterable[NDArray[np.int64]],
    *,
    optimiser: OptimiserName,
    learning_rate: float,
    momentum: float = 0.9,
    micro_batch: int | None = None,
) -> TrainingResult:
    """Train the attached parameters in place.

    Args:
        attached: What to train.
        x: Normalised windows ``(n, channels, window)``.
        y: Labels ``(n,)`` int64.
        order: Index arrays, one per step.
        optimiser: ``sgd`` (with ``momentum``) or ``adam``.
        learning_rate: Step size.
        momentum: Of SGD.
        micro_batch: Windows that run together; None for a whole step. Batch norm is frozen, so the
            gradient is the same up to the order of its sum.

    Raises:
        RoundError: ``training-diverged`` when the loss or the parameters are not finite.
    """
    stepper = _optimiser(attached, optimiser, learning_rate, momentum)
    total, steps = 0.0, 0
    for index in order:
        chosen = torch.from_numpy(index)
        stepper.zero_grad(set_to_none=True)
        total += accumulate(attached.module, x[chosen], y[chosen], micro_batch or len(chosen))
        stepper.step()
        steps += 1
    # The last step's effect shows in no loss.
    whole = all(bool(torch.isfinite(p).all()) for p in attached.parameters.values())
    if not (np.isfinite(total) and whole):
        raise diverged(learning_rate)
    return TrainingResult(steps, total / max(steps, 1))


def diverged(learning_rate: float) -> RoundError:
    """Make the error of a training whose loss or parameters are not finite."""
    return RoundError(
        "training-diverged",
        f"training diverged at learning rate {learning_rate}: loss or weights are not finite",
        "Lower the learning rate.",
    )


def batches(
    windows: int, *, batch: int, epochs: int, generator: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield index arrays of at most ``batch`` entries; each epoch visits every window once."""
    for _ in range(epochs):
        permutation = generator.permutation(windows).astype(np.int64)
        for start in range(0, windows, batch):
            yield permutation[start : start + batch]


def predict(module: torch.nn.Module, x: torch.Tensor, *, batch: int = 256) -> NDArray[np.int64]:
    """Return the most likely class ``(n,)`` int64 of each window ``(n, channels, window)``."""
    with torch.inference_mode():
        parts = [module(x[s : s + batch]).argmax(dim=-1) for s in range(0, len(x), batch)]
    return torch.cat(parts).numpy() if parts else np.zeros(0, np.int64)


def _optimiser(
    attached: Attached, name: OptimiserName, learning_rate: float, momentum: float
) -> torch.optim.Optimizer:
    parameters = list(attached.parameters.values())
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate)
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=momentum)
