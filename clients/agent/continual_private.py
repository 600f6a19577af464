"""A private core after a release: what it is trained and judged on, and its training alone.

An engine that trains many devices at once takes the same work, see
``simulations.continual.private``; :func:`trained_alone` is its oracle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from clients.agent.continual_labels import loss_of
from clients.agent.continual_memory import DeviceMemory, Labelled, known_of
from clients.agent.learner import Workbench
from fleet.adapt.attach import single_thread
from fleet.adapt.state import CoreState
from fleet.adapt.train import batches, train
from fleet.continual.guards import Anchor
from fleet.continual.options import ContinualOptions
from fleet.continual.personal import held_back
from fleet.errors import RoundError
from fleet.federate.records import Plan
from fleet.seeds import generator

__all__ = ["PrivateCore", "PrivateWork", "private_work", "trained_alone", "tried_alone"]


@dataclass(frozen=True, eq=False)
class PrivateWork:
    """What a device's private core is trained and judged on after a release.

    Args:
        bench: The device's own.
        before: The core so far; None before the first.
        training: Windows, one or more.
        check: Windows held back from training.
        order: Index arrays into ``training``, one per step.
        learning_rate: Its own.
        pull: Strength of L2 to the release.
    """

    bench: Workbench
    before: CoreState | None
    training: Labelled
    check: Labelled
    order: Sequence[NDArray[np.int64]]
    learning_rate: float
    pull: float


@dataclass(frozen=True, eq=False)
class PrivateCore:
    """What came of it.

    Args:
        core: The core, to be added to the release.
        helps: Whether the loss on the windows held back is smaller with it, or there are none.
    """

    core: CoreState
    helps: bool


def private_work(
    bench: Workbench,
    plan: Plan,
    options: ContinualOptions,
    memory: DeviceMemory,
    fresh: Labelled,
    *,
    device: str,
    seed: int,
) -> PrivateWork | None:
    """Return a device's work after a round; None without windows to train on.

    Args:
        bench: The device's own.
        plan: The round's plan, whose optimiser and rate it follows.
        options: How long, at which rate, on how many windows.
        memory: What the device remembers, without the fresh windows.
        fresh: Windows that were fresh in the round.
        device: Its name.
        seed: Root of its choices.
    """
    known = known_of(memory, fresh)
    judging = held_back(known.source)
    training, most = known.take(~judging), options.personal_windows
    if len(training) > most:
        # A sample keeps the cost of a round bounded.
        rng = generator(seed, plan.round, device, "continual/personal/windows")
        rows = np.sort(rng.choice(len(training), most, replace=False)).astype(np.int64)
        training = training.take(rows)
    if not len(training):
        return None
    order = batches(
        len(training),
        batch=plan.batch,
        epochs=options.personal_epochs,
        generator=generator(seed, plan.round, device, "continual/personal"),
    )
    return PrivateWork(
        bench,
        memory.personal,
        training,
        known.take(judging),
        tuple(order),
        plan.learning_rate * options.personal_rate,
        options.personal_anchor,
    )


def tried_alone(plan: Plan, release: CoreState, work: PrivateWork) -> PrivateCore | RoundError:
    """Do what :func:`trained_alone` does; a training that diverges is returned as its error."""
    try:
        return trained_alone(plan, release, work)
    except RoundError as error:
        if error.code != "training-diverged":
            raise
        return error


def trained_alone(plan: Plan, release: CoreState, work: PrivateWork) -> PrivateCore:
    """Train one device's private core on top of a release.

    Args:
        plan: The round's plan.
        release: Core state of the release.
        work: The device's.

    Raises:
        RoundError: ``training-diverged``.
    """
    bench = work.bench
    start = release if work.before is None else release + work.before
    with single_thread():
        attached = bench.attach(plan.method, start, torch.float32)
        train(
            attached,
            torch.from_numpy(work.training.x),
            torch.from_numpy(work.training.y),
            work.order,
            optimiser=plan.optimiser,
            learning_rate=work.learning_rate,
            momentum=plan.momentum,
            guards=[Anchor(release, work.pull)],
        )
        core = attached.state() - release
        if not len(work.check):
            return PrivateCore(core, helps=True)
        alone = loss_of(bench.served(release), work.check)
        return PrivateCore(core, loss_of(bench.served(release + core), work.check) < alone)
