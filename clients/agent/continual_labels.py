"""Labels that a device gives its own windows, and what a network says of windows at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.agent.continual_memory import Labelled
from fleet.adapt.attach import single_thread
from fleet.continual.options import ContinualOptions
from fleet.continual.pseudo import agreement, choose, worth_it

__all__ = ["Guesses", "guessed", "logits_of", "loss_of", "probabilities", "pseudo_labelled"]

Forward = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Of windows ``(n, channels, window)``: class probabilities ``(n, classes)``."""

# Windows per forward pass where nothing is trained.
PREDICT_BATCH = 256


@dataclass(frozen=True, eq=False)
class Guesses:
    """What a network says of windows without a label, and how far it is to be believed.

    Args:
        rows: Windows that it is sure of, int64 ``(m,)`` ascending.
        labels: Their classes, int64 ``(m,)``.
        right: How often it was right on labelled windows that it was sure of.
        confident: Of how many.
        why: Why there are no rows: ``no-held-out``, ``no-unlabelled``, ``few-held-out`` (also with
            all right there would be too few to tell), ``not-precise`` or ``none-confident``; empty
            where there are some.
    """

    rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    right: int = 0
    confident: int = 0
    why: str = ""


def guessed(
    forward: Forward,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    unlabelled: NDArray[np.float32],
    *,
    threshold: float,
    precision: float,
    total: int,
) -> Guesses:
    """Try a network on labelled windows and, where it is trusted, let it label others.

    Args:
        forward: The network.
        x: Labelled windows that it was not trained on ``(n, channels, window)``.
        y: Their classes, int64 ``(n,)``.
        unlabelled: ``(m, channels, window)``.
        threshold: Confidence that a window needs.
        precision: Least lower bound of its precision, see :func:`fleet.continual.pseudo.worth_it`.
        total: Most windows that it labels; classes share it evenly.
    """
    if not (len(y) and len(unlabelled)):
        return Guesses(why="no-unlabelled" if len(y) else "no-held-out")
    right, confident = agreement(forward(x), y, threshold)
    if not worth_it(right, confident, bound=precision):
        could = worth_it(confident, confident, bound=precision)
        why = "not-precise" if could else "few-held-out"
        return Guesses(right=right, confident=confident, why=why)
    found = forward(unlabelled)
    whole = np.flatnonzero(np.isfinite(found).all(axis=1))
    per_class = -(-total // found.shape[1])
    rows, labels = choose(found[whole], threshold=threshold, per_class=per_class, total=total)
    return Guesses(whole[rows], labels, right, confident, "" if len(rows) else "none-confident")


def pseudo_labelled(
    network: nn.Module,
    options: ContinualOptions,
    fresh: Labelled,
    unlabelled: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the windows that a network labels, and their labels; none where it is not trusted.

    Args:
        network: What the device serves, without what is private to it.
        options: How sure it must be, and how many there may be.
        fresh: Labelled windows that it is tried on first.
        unlabelled: ``(m, channels, window)``.
    """
    if not options.pseudo:
        return unlabelled[:0], np.zeros(0, np.int64)
    found = guessed(
        partial(probabilities, network),
        fresh.x,
        fresh.y,
        unlabelled,
        threshold=options.pseudo_threshold,
        precision=options.pseudo_precision,
        total=max(1, round(options.pseudo * len(fresh))),
    )
    return unlabelled[found.rows], found.labels


def probabilities(network: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return class probabilities ``(n, classes)`` float64 of windows."""
    logits = logits_of(network, torch.from_numpy(x))
    return np.asarray(torch.softmax(logits.double(), dim=1).numpy())


def logits_of(network: nn.Module, x: torch.Tensor, *, batch: int | None = None) -> torch.Tensor:
    """Return logits ``(n, classes)`` of one window or more, ``batch`` of them at once."""
    size = min(batch or PREDICT_BATCH, PREDICT_BATCH)
    with torch.no_grad(), single_thread():
        parts = [network(part) for part in torch.split(x.float(), size)]
    return torch.cat(parts)


def loss_of(network: nn.Module, known: Labelled) -> float:
    """Return the mean cross-entropy of windows in nats; 0 without any."""
    if not len(known):
        return 0.0
    logits = logits_of(network, torch.from_numpy(known.x))
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(known.y)))
