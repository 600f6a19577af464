"""Training of a whole cohort: what each device would have found alone, found together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch

from fleet.adapt.cohort.network import CohortNetwork
from fleet.adapt.cohort.optimisers import stepper
from fleet.adapt.cohort.work import DeviceWork, step_batch
from fleet.adapt.state import CoreState
from fleet.adapt.train import OptimiserName, TrainingResult, diverged
from fleet.errors import InputError, RoundError

__all__ = ["CHUNK_DEVICES", "Outcome", "losses_of", "train_cohort"]

# Eight devices' batches of 16 fill a slice of 128 windows; beyond that nothing more is shared, and
# more of unequal devices' batches is filled up.
CHUNK_DEVICES = 8

# How far a device moved and what training says of itself, or why it could not.
Outcome: TypeAlias = tuple[CoreState, TrainingResult] | RoundError


def train_cohort(
    network: CohortNetwork,
    devices: Sequence[DeviceWork],
    *,
    optimiser: OptimiserName,
    learning_rate: float,
    momentum: float = 0.9,
    pull: float = 0.0,
    chunk: int = CHUNK_DEVICES,
) -> list[Outcome]:
    """Train every device from the network's start, or from where its work says.

    Devices train in chunks of equals: those with the same number of steps and windows fill their
    batches alike. A device that diverges harms nobody else. On a CPU, run it on one thread
    (:func:`fleet.adapt.attach.single_thread`): sums then keep one order.

    Args:
        network: What to train; restarted for each chunk.
        devices: Their work; each result depends on its own alone, up to rounding.
        optimiser: ``sgd`` (with ``momentum``) or ``adam``.
        learning_rate: Step size.
        momentum: Of SGD.
        pull: Strength of L2 to the network's start; losses are without it, and without the pulls
            of :class:`~.work.DeviceWork`.
        chunk: Devices that train together.

    Returns:
        By device, in the order given: how far it moved from the start, as
        ``clients.agent.learner.Learner.train`` returns it, with its result; or the error
        ``training-diverged``.

    Raises:
        InputError: ``cohort-chunk`` when a chunk has no devices.
    """
    if chunk < 1:
        raise InputError("cohort-chunk", f"a chunk has 1 device or more, not {chunk}")
    alike = sorted(
        range(len(devices)), key=lambda d: (-len(devices[d].order), -devices[d].visits, d)
    )
    found: dict[int, Outcome] = {}
    for start in range(0, len(alike), chunk):
        together = alike[start : start + chunk]
        works = [devices[device] for device in together]
        outcomes = _train_chunk(network, works, optimiser, learning_rate, momentum, pull)
        found.update(zip(together, outcomes, strict=True))
    return [found[device] for device in range(len(devices))]


def losses_of(network: CohortNetwork, devices: Sequence[DeviceWork]) -> list[float]:
    """Return each device's mean cross-entropy over its first step, in nats, where it begins."""
    found = []
    for work in devices:
        # One by one: their windows fill slices, and nothing has to be filled up.
        network.restart(1, [work.ahead], [work.maps])
        batch = step_batch([work], 0, dtype=network.dtype, place=network.place)
        found.append(float(network.losses(*batch)[0]))
    return found


def _train_chunk(
    network: CohortNetwork,
    works: Sequence[DeviceWork],
    optimiser: OptimiserName,
    learning_rate: float,
    momentum: float,
    pull: float,
) -> list[Outcome]:
    """Train devices sorted by falling number of steps: those with a step left come first."""
    network.restart(len(works), [work.ahead for work in works], [work.maps for work in works])
    pulled = any(work.pulls is not None for work in works)
    pulls = network.stacked([work.pulls for work in works]) if pulled else {}
    steps = torch.tensor([len(work.order) for work in works], device=network.place)
    moves = stepper(network.parameters, optimiser, learning_rate, momentum)
    totals = torch.zeros(len(works), dtype=torch.float64, device=network.place)
    for step in range(len(works[0].order)):
        running = [work for work in works if len(work.order) > step]
        batch = step_batch(running, step, dtype=network.dtype, place=network.place)
        losses, gradients = network.gradients(*batch)
        if pull:
            network.add_pull(gradients, pull)
        if pulls:
            network.add_pull(gradients, pulls)
        moves.step(gradients, steps > step)
        totals[: len(running)] += losses
    # The last step's effect shows in no loss.
    whole = (network.finite().to(totals.device) & totals.isfinite()).tolist()
    return [
        (state - network.start, TrainingResult(len(work.order), total / max(len(work.order), 1)))
        if sound
        else diverged(learning_rate)
        for work, state, total, sound in zip(
            works, network.states(), totals.tolist(), whole, strict=True
        )
    ]
