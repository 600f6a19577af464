"""Watching for drift: what a device's detector makes of its windows, without labels.

Signals come from the base as the fleet made it, which stays while releases move: a release is no
drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.attach import single_thread
from fleet.continual.drift import LabelFreeDrift, restore
from fleet.continual.signals import Reference, signals
from fleet.models.registry import HEAD

__all__ = ["features_of", "reference_of", "watched"]

FORWARD_WINDOWS = 256


def features_of(
    network: nn.Module, x: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return what a network makes of windows.

    Args:
        network: Folded, ends in a layer called ``head``.
        x: ``(n, channels, window)``.

    Returns:
        Features ``(n, d)`` that the head sees, and logits ``(n, classes)``, float32.
    """
    seen: list[torch.Tensor] = []
    head = network.get_submodule(HEAD)
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        with torch.no_grad(), single_thread():
            parts = torch.split(torch.from_numpy(x), FORWARD_WINDOWS)
            logits = torch.cat([network(part) for part in parts])
    finally:
        hook.remove()
    return torch.cat(seen).numpy(), logits.numpy()


def reference_of(network: nn.Module, x: NDArray[np.float32]) -> Reference:
    """Fit the reference of a base to source windows ``(n, channels, window)``.

    Raises:
        InputError: ``no-reference`` for fewer than two windows.
    """
    features, logits = features_of(network, x)
    return Reference.of(features, logits.argmax(axis=1).astype(np.int64), logits.shape[1])


def watched(
    detector: Mapping[str, Any] | None,
    network: nn.Module,
    reference: Reference,
    x: NDArray[np.float32],
) -> tuple[dict[str, Any], int]:
    """Show windows to a detector.

    Args:
        detector: State of the detector before; None for a new one.
        network: The base's folded network, which ``reference`` is of.
        reference: See :func:`reference_of`.
        x: Windows ``(n, channels, window)`` in time order.

    Returns:
        The detector's state after, and how many alarms it raised.
    """
    own = LabelFreeDrift() if detector is None else restore(detector)
    if not len(x):
        return own.state(), 0
    features, logits = features_of(network, x)
    known = logits[:, : len(reference.means)]
    alarms = own.update(signals(known, features, reference))
    return own.state(), len(alarms)
