"""Pre-training of a base network on source people.

The rate and the momentum follow the one-cycle policy (Smith & Topin, "Super-Convergence", arXiv
1708.07120) as ``torch.optim.lr_scheduler.OneCycleLR`` does by default, to the bit; PyTorch's own
would import its compiler, see :mod:`fleet.adapt.stepper`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fleet.adapt.stepper import AdamW, Stepper
from fleet.adapt.train import batches
from fleet.errors import ModelError
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.seeds import derive_seed, generator

__all__ = ["pretrain"]

# The share of all steps in which the rate rises. It starts at its peak divided by the first number
# and ends at that divided by the second.
RISE = 0.3
TO_FIRST, TO_LAST = 25.0, 1e4
# Adam's first beta at the ends and at the peak.
SLOW, FAST = 0.95, 0.85


def pretrain(
    config: ModelConfig,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    *,
    seed: int,
    epochs: int,
    batch: int = 64,
    learning_rate: float = 2e-3,
    weight_decay: float = 1e-3,
    purpose: str = "base",
    on_epoch: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train a fresh network with AdamW and a one-cycle rate; return it in evaluation mode.

    Args:
        config: Architecture.
        x: Normalised windows ``(n, channels, window)``.
        y: Labels ``(n,)``.
        seed: Root seed of weights and batch order.
        epochs: Passes over the data.
        batch: Windows per step; a last batch of one is left out, batch norm cannot use it.
        learning_rate: Peak rate.
        weight_decay: Of AdamW.
        purpose: Seed purpose, so that two networks of one run differ.
        on_epoch: Called with the epoch (from 1) and its mean loss.

    Raises:
        ModelError: ``no-windows``, ``pretraining-recipe`` or ``pretraining-diverged``.
    """
    if epochs < 0 or not (learning_rate >= 0 and weight_decay >= 0):
        raise ModelError(
            "pretraining-recipe",
            f"epochs, learning rate and weight decay are 0 or more, not {epochs}, "
            f"{learning_rate:g} and {weight_decay:g}",
        )
    if len(x) < 2:
        raise ModelError("no-windows", f"a base needs at least two windows, not {len(x)}")
    model = build(config, derive_seed(seed, 0, "server", f"{purpose}/weights"))
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    steps, taken = epochs * -(-len(x) // batch), 0
    rule = AdamW(learning_rate, weight_decay=weight_decay)
    stepper = Stepper(dict(model.named_parameters()), rule)
    rng = generator(seed, 0, "server", f"{purpose}/batches")
    model.train()
    for epoch in range(1, epochs + 1):
        total, count = 0.0, 0
        for index in batches(len(x), batch=batch, epochs=1, generator=rng):
            if len(index) < 2:
                continue
            chosen = torch.from_numpy(index)
            stepper.clear()
            loss = functional.cross_entropy(model(inputs[chosen]), labels[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            stepper.rule = _in_cycle(rule, taken, steps)
            stepper.step()
            taken += 1
            total, count = total + float(loss.detach()), count + 1
        if not math.isfinite(total):
            raise ModelError(
                "pretraining-diverged",
                f"the loss is not finite in epoch {epoch} at peak rate {learning_rate:g}",
                "Look at the data's ranges: fleet data inspect.",
            )
        if on_epoch is not None:
            on_epoch(epoch, total / max(count, 1))
    return model.eval()


def _in_cycle(rule: AdamW, step: int, last: int) -> AdamW:
    """Return a peak's rule as it is in a step from 0 to ``last``."""
    peak, turn = rule.learning_rate, RISE * (last + 1) - 1
    first = peak / TO_FIRST
    if step <= turn:
        part, rates, momenta = step / turn, (first, peak), (SLOW, FAST)
    else:
        part, rates, momenta = (step - turn) / (last - turn), (peak, first / TO_LAST), (FAST, SLOW)
    momentum = _annealed(*momenta, part)
    return replace(rule, learning_rate=_annealed(*rates, part), betas=(momentum, *rule.betas[1:]))


def _annealed(start: float, end: float, part: float) -> float:
    """Go from ``start`` to ``end`` along half a cosine."""
    return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)
