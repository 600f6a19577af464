"""Local training: a few epochs of one device over its own windows.

The only randomness is the order of the windows, drawn from a named seed; the optimiser starts fresh
each round, because its state describes a release that the fleet has left. Within a round it can be
watched after every step, stopped there, and resumed later to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fleet.adapt.attach import Attached
from fleet.adapt.lean.plan import accumulate
from fleet.adapt.stepper import OptimiserName, Stepper, rule_of
from fleet.errors import MismatchError, RoundError

__all__ = [
    "AfterStep",
    "Guard",
    "OptimiserName",
    "Progress",
    "TrainingResult",
    "batches",
    "diverged",
    "predict",
    "train",
]


@dataclass(frozen=True, eq=False)
class Progress:
    """A training between two of its steps: all that the rest of it depends on.

    Args:
        steps: Optimiser steps taken.
        total: Sum of their mean cross-entropies, in nats.
        arrays: Copies of the trained parameters and of the optimiser's moments, named as
            :meth:`fleet.adapt.stepper.Stepper.export` says; fit for a safetensors file.
    """

    steps: int
    total: float
    arrays: Mapping[str, NDArray[Any]]


AfterStep = Callable[[int, Callable[[], Progress]], None]
"""Called after every step with the steps taken and with what makes a Progress of that moment."""


class Guard(Protocol):
    """What holds training back from where it would lead alone, see ``fleet.continual.guards``."""

    def add_gradient(self, attached: Attached, x: torch.Tensor, rows: NDArray[np.int64]) -> None:
        """Add the gradient of its own loss to that of the cross-entropy.

        Args:
            attached: What is trained; ``grad`` of its parameters grows.
            x: The step's windows ``(batch, channels, window)``.
            rows: Which of all windows these are, int64 ``(batch,)``.
        """
        ...


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
    guards: Sequence[Guard] = (),
    resume: Progress | None = None,
    after_step: AfterStep | None = None,
) -> TrainingResult:
    """Train the attached parameters in place.

    A training that is resumed on the same arguments ends with the bits of one that never stopped.

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
        guards: Each adds its own gradient in every step; the loss that is returned is without them.
        resume: Where to go on; its steps are left out of ``order``. The parameters' own values are
            not looked at then.
        after_step: Watches the training, see :data:`AfterStep`. What it raises stops the training
            and passes through; the snapshot is to be made before it returns.

    Returns:
        Steps and loss of the whole training, of both parts where it was resumed.

    Raises:
        MismatchError: ``progress-mismatch`` when ``resume`` is not of this training; then no
            parameter has changed.
        RoundError: ``training-diverged`` when the loss or the parameters are not finite.
    """
    stepper = Stepper(attached.parameters, rule_of(optimiser, learning_rate, momentum))
    rest, total, steps = iter(order), 0.0, 0
    if resume is not None:
        _skip(rest, resume.steps)
        stepper.restore(resume.arrays)
        total, steps = resume.total, resume.steps
    for index in rest:
        chosen = torch.from_numpy(index)
        stepper.clear()
        total += accumulate(attached.module, x[chosen], y[chosen], micro_batch or len(chosen))
        for guard in guards:
            guard.add_gradient(attached, x[chosen], index)
        stepper.step()
        steps += 1
        if after_step is not None:
            after_step(steps, partial(_snapshot, stepper, steps, total))
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


def _snapshot(stepper: Stepper, steps: int, total: float) -> Progress:
    return Progress(steps, total, stepper.export())


def _skip(order: Iterator[NDArray[np.int64]], steps: int) -> None:
    """Leave out the batches of the steps that were taken."""
    skipped = sum(1 for _ in islice(order, max(steps, 0)))
    if skipped != steps:
        raise MismatchError(
            "progress-mismatch",
            f"the saved progress is {steps} steps, this training has {skipped} or more of them",
            "Drop it and train from the release.",
        )
