"""Labels that a device gives its own windows, and what a network says of windows at all."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.agent.continual_memory import Labelled
from fleet.adapt.attach import single_thread
from fleet.continual.options import ContinualOptions
from fleet.continual.pseudo import agreement, choose, worth_it

__all__ = ["logits_of", "loss_of", "probabilities", "pseudo_labelled"]

# Windows per forward pass where nothing is trained.
PREDICT_BATCH = 256


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
    none = unlabelled[:0], np.zeros(0, np.int64)
    if not options.pseudo or not len(fresh) or not len(unlabelled):
        return none
    known, threshold = probabilities(network, fresh.x), options.pseudo_threshold
    right, confident = agreement(known, fresh.y, threshold)
    if not worth_it(right, confident, bound=options.pseudo_precision):
        return none
    total = max(1, round(options.pseudo * len(fresh)))
    found = probabilities(network, unlabelled)
    rows, labels = choose(
        found, threshold=threshold, per_class=-(-total // found.shape[1]), total=total
    )
    return unlabelled[rows], labels


def probabilities(network: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return class probabilities ``(n, classes)`` float64 of windows."""
    return np.asarray(torch.softmax(logits_of(network, x).double(), dim=1).numpy())


def logits_of(network: nn.Module, x: NDArray[np.float32]) -> torch.Tensor:
    """Return logits ``(n, classes)`` of one window or more."""
    with torch.no_grad(), single_thread():
        parts = [network(part) for part in torch.split(torch.from_numpy(x), PREDICT_BATCH)]
    return torch.cat(parts)


def loss_of(network: nn.Module, known: Labelled) -> float:
    """Return the mean cross-entropy of windows in nats; 0 without any."""
    if not len(known):
        return 0.0
    logits = logits_of(network, known.x)
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(known.y)))
