"""Private cores of many devices, trained as one batched computation.

Devices that have nothing of their own but where they begin and their batch-norm statistics share
every kernel, so the cohort network trains them as it trains a round. What it finds is what
:func:`clients.agent.continual_private.tried_alone` finds, up to the order in which floating-point
numbers are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from clients.agent.continual_private import PrivateCore, PrivateWork, tried_alone
from clients.agent.learner import Workbench
from fleet.adapt.attach import single_thread
from fleet.adapt.cohort.network import CohortNetwork, attach_cohort
from fleet.adapt.cohort.train import CHUNK_DEVICES, losses_of, train_cohort
from fleet.adapt.cohort.work import DeviceWork
from fleet.adapt.state import CoreState
from fleet.errors import ModelError, RoundError
from fleet.federate.records import Plan
from fleet.peft.registry import find

__all__ = ["OneByOne", "PrivateTraining", "Together"]


class PrivateTraining(Protocol):
    """Trains private cores of devices that share a workbench."""

    def train(
        self, bench: Workbench, plan: Plan, release: CoreState, works: Sequence[PrivateWork]
    ) -> list[PrivateCore | RoundError]:
        """Return what comes of each device's work, in order; ``training-diverged`` of one that did.

        Args:
            bench: What the devices share, see :meth:`~.devices.Devices.shared`.
            plan: The round's plan.
            release: Core state of the release.
            works: Of one device each, all at one learning rate and pull.
        """
        ...


class OneByOne:
    """The oracle: each device as if it were alone."""

    def train(
        self, bench: Workbench, plan: Plan, release: CoreState, works: Sequence[PrivateWork]
    ) -> list[PrivateCore | RoundError]:
        """Train, see :class:`PrivateTraining`."""
        return [tried_alone(plan, release, work) for work in works]


class Together:
    """All devices in one network, which is kept until base or method changes."""

    def __init__(self) -> None:
        self._held: tuple[tuple[object, ...], CohortNetwork | None] | None = None

    def train(
        self, bench: Workbench, plan: Plan, release: CoreState, works: Sequence[PrivateWork]
    ) -> list[PrivateCore | RoundError]:
        """Train, see :class:`PrivateTraining`; one by one where no network takes many devices."""
        with single_thread():
            network = self._network(bench, plan, release) if len(works) > 1 else None
            if network is None:
                return OneByOne().train(bench, plan, release, works)
            network.begin(release)
            found = _cores(network, plan, works)
            cores = {n: core for n, core in enumerate(found) if isinstance(core, CoreState)}
            checked = [n for n in cores if len(works[n].check)]
            without = losses_of(network, [_check(works[n], None) for n in checked])
            own = losses_of(network, [_check(works[n], cores[n]) for n in checked])
        helps = {n: mine < theirs for n, mine, theirs in zip(checked, own, without, strict=True)}
        return [
            PrivateCore(core, helps.get(n, True)) if isinstance(core, CoreState) else core
            for n, core in enumerate(found)
        ]

    def _network(self, bench: Workbench, plan: Plan, release: CoreState) -> CohortNetwork | None:
        key = (bench.base.digest, plan.method, plan.layout, len(bench.maps) > 0)
        if self._held is None or self._held[0] != key:
            self._held = (key, _shared(bench, plan, release))
        return self._held[1]


def _shared(bench: Workbench, plan: Plan, release: CoreState) -> CohortNetwork | None:
    """Return a network of many devices, or None where they cannot train together."""
    if not find(plan.method).lean:
        return None
    try:
        return attach_cohort(
            bench.network, bench.base.frames, release, CHUNK_DEVICES, dtype=torch.float32
        )
    except ModelError as error:
        if not error.code.startswith("cohort-"):
            raise
        return None


def _cores(
    network: CohortNetwork, plan: Plan, works: Sequence[PrivateWork]
) -> list[CoreState | RoundError]:
    """Train from where devices were; what a private core is, the network's start is without."""
    own = [
        DeviceWork(
            torch.from_numpy(work.training.x),
            torch.from_numpy(work.training.y),
            work.order,
            ahead=work.before,
            maps=work.bench.maps,
        )
        for work in works
    ]
    outcomes = train_cohort(
        network,
        own,
        optimiser=plan.optimiser,
        learning_rate=works[0].learning_rate,
        momentum=plan.momentum,
        pull=works[0].pull,
    )
    return [one if isinstance(one, RoundError) else one[0] for one in outcomes]


def _check(work: PrivateWork, core: CoreState | None) -> DeviceWork:
    held = work.check
    every = np.arange(len(held), dtype=np.int64)
    x, y = torch.from_numpy(held.x), torch.from_numpy(held.y)
    return DeviceWork(x, y, [every], ahead=core, maps=work.bench.maps)
