"""A worker of the cohort engine: trains and judges one chunk of devices at a time, on one thread.

What is checked, in which order windows come and what is sent is the learners' own code; only the
arithmetic between them is shared. Methods that train whole kernels, networks with calls that may
mix windows, and devices with a memory budget are left to their learners one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.agent.learner import Learner, Workbench, judged, opened
from clients.agent.residuals import Residuals
from fleet.adapt.cohort.evaluate import evaluate_cohort
from fleet.adapt.cohort.network import SLICE_WINDOWS, CohortNetwork, attach_cohort
from fleet.adapt.cohort.train import CHUNK_DEVICES, Outcome, train_cohort
from fleet.adapt.cohort.work import DeviceWork
from fleet.adapt.lean.module import LeanNetwork
from fleet.adapt.state import CoreState
from fleet.adapt.train import TrainingResult
from fleet.continual.guards import Anchor
from fleet.errors import ModelError
from fleet.federate.records import Plan
from fleet.federate.wire import Payload
from fleet.measure.f1 import confusion
from fleet.peft.registry import find
from simulations.cohort.fleet import LearnerFleet, attempt

__all__ = ["ChunkWorker", "pulls_of"]


class ChunkWorker:
    """Answers for chunks of devices; not for use from several threads at once.

    Args:
        learners: Where the devices' learners are found; may be shared.
    """

    def __init__(self, learners: LearnerFleet) -> None:
        self._learners = learners
        self._opened: tuple[Payload, Plan, CoreState] | None = None
        # Of one base, by method and layout: a run has one, until its base changes.
        self._base = ""
        self._networks: dict[tuple[str, str], CohortNetwork | None] = {}
        self._judged: tuple[str, nn.Module] = ("", nn.Identity())

    def prepare(self, message: Payload) -> bool:
        """Open a plan before its first chunk; return whether other workers may run beside this one.

        A network is translated by patching PyTorch's modules for as long as that takes, so no other
        thread of the process may run one meanwhile.

        Raises:
            MismatchError: When base, frames, layout or release are not those of the plan.
        """
        bench = self._learners.bench
        if self._opened is None or self._opened[0] is not message:
            plan, state = opened(message, bench)
            network = self._network(bench, plan, state)
            if network is not None:
                network.begin(state)
            self._opened = (message, plan, state)
        plan = self._opened[1]
        # A lean learner on its own is translated at every plan.
        return self._networks[plan.method, plan.layout] is not None or not find(plan.method).lean

    def train(self, message: Payload, partitions: Sequence[int]) -> list[Payload | Exception]:
        """Answer a plan, see :class:`~simulations.cohort.fleet.CohortFleet`.

        Raises:
            ModelError: ``cohort-guard`` when a device's training has a guard that is no pull to the
                plan's release; like whatever speaks against a common training, it is everybody's.
        """
        self.prepare(message)
        assert self._opened is not None
        _, plan, state = self._opened
        network = self._networks[plan.method, plan.layout]
        learners = [attempt(self._learner, plan, p) for p in partitions]
        able = [each for each in learners if isinstance(each, Learner)]
        if network is None or not able:
            return [
                attempt(self._learners.residuals.answer, each, partition, message)
                if isinstance(each, Learner)
                else each
                for each, partition in zip(learners, partitions, strict=True)
            ]
        with_windows = [each for each in able if len(each.windows.train_y)]
        outcomes = _train(network, plan, state, with_windows)
        found = dict(zip(map(id, with_windows), outcomes, strict=True))
        return [
            _answer(each, plan, found, self._learners.residuals, partition)
            for each, partition in zip(learners, partitions, strict=True)
        ]

    def evaluate(
        self, message: Payload, partitions: Sequence[int]
    ) -> list[NDArray[np.int64] | Exception]:
        """Judge a release, see :class:`~simulations.cohort.fleet.CohortFleet`."""
        self.prepare_to_judge(message)
        learners = [attempt(self._learners.learner, p) for p in partitions]
        able = [each for each in learners if isinstance(each, Learner)]
        windows = [torch.from_numpy(each.windows.test_x) for each in able]
        predicted = iter(evaluate_cohort(self._judged[1], windows))
        classes = len(self._learners.bench.base.record.labels)
        return [
            confusion(each.windows.test_y, next(predicted), classes)
            if isinstance(each, Learner)
            else each
            for each in learners
        ]

    def prepare_to_judge(self, message: Payload) -> None:
        """Merge a release before its first chunk is judged; alone, as :meth:`prepare`.

        Raises:
            MismatchError: When it is not for this base and layout.
        """
        bench = self._learners.bench
        state = judged(message, bench)
        if self._judged[0] != state.digest:
            served = copy.deepcopy(bench.served(state))
            self._judged = (state.digest, LeanNetwork(served, {}, SLICE_WINDOWS, quick=True))

    def _learner(self, plan: Plan, partition: int) -> Learner:
        learner = self._learners.learner(partition)
        learner.check_guards(plan)
        return learner

    def _network(self, bench: Workbench, plan: Plan, state: CoreState) -> CohortNetwork | None:
        """Return the network of many devices, or None where they cannot train together."""
        key = (plan.method, plan.layout)
        if self._base != bench.base.digest:
            self._base, self._networks = bench.base.digest, {}
        if key not in self._networks:
            together = find(plan.method).lean and not self._learners.memory_budget_bytes
            self._networks[key] = _together(bench, state) if together else None
        return self._networks[key]


def _together(bench: Workbench, state: CoreState) -> CohortNetwork | None:
    try:
        return attach_cohort(
            bench.network, bench.base.frames, state, CHUNK_DEVICES, dtype=torch.float32
        )
    except ModelError as error:
        if not error.code.startswith("cohort-"):
            raise
        return None


def _train(
    network: CohortNetwork, plan: Plan, state: CoreState, learners: Sequence[Learner]
) -> list[Outcome]:
    works = [
        DeviceWork(
            torch.from_numpy(each.windows.train_x),
            torch.from_numpy(each.windows.train_y),
            list(each.order(plan)),
            maps=each.bench.maps,
            pulls=pulls_of(each, plan, state),
        )
        for each in learners
    ]
    return train_cohort(
        network,
        works,
        optimiser=plan.optimiser,
        learning_rate=plan.learning_rate,
        momentum=plan.momentum,
    )


def pulls_of(learner: Learner, plan: Plan, state: CoreState) -> CoreState | None:
    """Return how hard each entry of a device is pulled to where it starts; None for not at all.

    Args:
        learner: The device's.
        plan: The round's.
        state: Core state of the plan's release, where every device starts.

    Raises:
        ModelError: ``cohort-guard`` when one of its guards is something else.
    """
    found: CoreState | None = None
    for guard in () if learner.guards is None else learner.guards(learner, plan, state):
        if not isinstance(guard, Anchor) or guard.at.digest != state.digest:
            raise ModelError(
                "cohort-guard",
                f"devices that train together have no {type(guard).__name__} but to the release",
                "Train these devices one by one.",
            )
        weights = guard.weights
        if weights is None:
            weights = CoreState.from_flat(state.layout, np.ones(state.layout.size, np.float32))
        own = weights.scale(guard.strength)
        found = own if found is None else found + own
    return found


def _answer(
    learner: Learner | Exception,
    plan: Plan,
    found: dict[int, Outcome],
    residuals: Residuals,
    partition: int,
) -> Payload | Exception:
    """Return what a device sends, as :meth:`clients.agent.learner.Learner.answer_plan` does."""
    if isinstance(learner, Exception):
        return learner
    outcome = found.get(id(learner))
    if outcome is None:
        refused = attempt(learner.check_windows)
        return refused if isinstance(refused, Exception) else ValueError("a device was left out")
    if isinstance(outcome, Exception):
        return outcome
    delta, result = outcome
    return attempt(_encoded, learner, plan, delta, result, residuals, partition)


def _encoded(
    learner: Learner,
    plan: Plan,
    delta: CoreState,
    result: TrainingResult,
    residuals: Residuals,
    partition: int,
) -> Payload:
    answer, lost = learner.encode_with(plan, delta, result, residuals.of(plan, partition))
    residuals.put(partition, lost)
    return answer
