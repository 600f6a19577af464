"""A worker of the cohort engine: trains and judges one chunk of devices at a time, on one thread.

What is checked, in which order windows come and what is sent is the learners' own code; only the
arithmetic between them is shared. Methods that train whole kernels, networks with calls that may
mix windows, and devices with a memory budget are left to their learners one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from clients.agent.learner import Learner, Workbench, judged, opened
from fleet.adapt.cohort.evaluate import evaluate_cohort
from fleet.adapt.cohort.network import CohortNetwork, attach_cohort
from fleet.adapt.cohort.train import CHUNK_DEVICES, Outcome, train_cohort
from fleet.adapt.cohort.work import DeviceWork
from fleet.adapt.state import CoreState
from fleet.errors import ModelError
from fleet.federate.records import Plan
from fleet.federate.wire import Payload
from fleet.measure.f1 import confusion
from fleet.peft.registry import find
from simulations.cohort.fleet import LearnerFleet, attempt

__all__ = ["ChunkWorker"]


class ChunkWorker:
    """Answers for chunks of devices; not for use from several threads at once.

    Args:
        learners: Where the devices' learners are found; may be shared.
    """

    def __init__(self, learners: LearnerFleet) -> None:
        self._learners = learners
        self._plan: tuple[Payload, Plan, CoreState, CohortNetwork | None] | None = None

    def train(self, message: Payload, partitions: Sequence[int]) -> list[Payload | Exception]:
        """Answer a plan, see :class:`~simulations.cohort.fleet.CohortFleet`."""
        learners = [attempt(self._learners.learner, p) for p in partitions]
        able = [each for each in learners if isinstance(each, Learner)]
        if not able or any(each.memory_budget_bytes for each in able):
            return self._one_by_one(message, learners)
        plan, network = self._prepared(message, able[0].bench, able[0].dtype)
        if network is None:
            return self._one_by_one(message, learners)
        with_windows = [each for each in able if len(each.windows.train_y)]
        outcomes = _train(network, plan, with_windows)
        found = dict(zip(map(id, with_windows), outcomes, strict=True))
        return [_answer(each, plan, found) for each in learners]

    def evaluate(
        self, message: Payload, partitions: Sequence[int]
    ) -> list[NDArray[np.int64] | Exception]:
        """Judge a release, see :class:`~simulations.cohort.fleet.CohortFleet`."""
        learners = [attempt(self._learners.learner, p) for p in partitions]
        able = [each for each in learners if isinstance(each, Learner)]
        if not able:
            return [each for each in learners if isinstance(each, Exception)]
        bench = able[0].bench
        state = judged(message, bench)
        windows = [torch.from_numpy(each.windows.test_x) for each in able]
        predicted = iter(evaluate_cohort(bench.served(state), windows))
        classes = len(bench.base.record.labels)
        return [
            confusion(each.windows.test_y, next(predicted), classes)
            if isinstance(each, Learner)
            else each
            for each in learners
        ]

    def _prepared(
        self, message: Payload, bench: Workbench, dtype: torch.dtype
    ) -> tuple[Plan, CohortNetwork | None]:
        """Return a plan and the network of many devices, None where they cannot train together."""
        if self._plan is None or self._plan[0] is not message:
            plan, state = opened(message, bench)
            self._plan = (message, plan, state, _together(bench, plan, state, dtype))
        return self._plan[1], self._plan[3]

    def _one_by_one(
        self, message: Payload, learners: Sequence[Learner | Exception]
    ) -> list[Payload | Exception]:
        return [
            attempt(each.answer_plan, message) if isinstance(each, Learner) else each
            for each in learners
        ]


def _together(
    bench: Workbench, plan: Plan, state: CoreState, dtype: torch.dtype
) -> CohortNetwork | None:
    if not find(plan.method).lean:
        return None
    try:
        return attach_cohort(bench.network, bench.base.frames, state, CHUNK_DEVICES, dtype=dtype)
    except ModelError as error:
        if not error.code.startswith("cohort-"):
            raise
        return None


def _train(network: CohortNetwork, plan: Plan, learners: Sequence[Learner]) -> list[Outcome]:
    works = [
        DeviceWork(
            torch.from_numpy(each.windows.train_x),
            torch.from_numpy(each.windows.train_y),
            list(each.order(plan)),
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


def _answer(
    learner: Learner | Exception, plan: Plan, found: dict[int, Outcome]
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
    return attempt(learner.encode, plan, delta, result)
