"""The batched fleet: many devices' cores trained as one computation, the rest by their learners.

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
from fleet.adapt.attach import single_thread
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
from simulations.cohort.fleet import LearnerFleet, RunConfigValues, attempt

__all__ = ["BatchedFleet"]


class BatchedFleet(LearnerFleet):
    """The devices of a run, trained together where that is the same training.

    Its updates are those of :class:`~simulations.cohort.fleet.LearnerFleet` up to the order in
    which floating-point numbers are added.

    Args:
        run_config: See :class:`~simulations.cohort.fleet.LearnerFleet`.
    """

    def __init__(self, run_config: RunConfigValues) -> None:
        super().__init__(run_config)
        # The plan that could not be trained together last, so that nobody asks for each block.
        self._one_by_one = ""

    def train(self, message: Payload, partitions: Sequence[int]) -> list[Payload | Exception]:
        """Answer a plan, see :class:`~simulations.cohort.fleet.CohortFleet`."""
        learners = [attempt(self.learner, p) for p in partitions]
        able = [each for each in learners if isinstance(each, Learner)]
        if not able or any(each.memory_budget_bytes for each in able):
            return super().train(message, partitions)
        plan, state = opened(message, able[0].bench)
        network = self._network(able[0].bench, plan, state, able[0].dtype)
        if network is None:
            return super().train(message, partitions)
        with_windows = [each for each in able if len(each.windows.train_y)]
        found = dict(zip(map(id, with_windows), _train(network, plan, with_windows), strict=True))
        return [_answer(each, plan, found) for each in learners]

    def _network(
        self, bench: Workbench, plan: Plan, state: CoreState, dtype: torch.dtype
    ) -> CohortNetwork | None:
        """Return the network of many devices, or None where they cannot train together."""
        if plan.id == self._one_by_one:
            return None
        if find(plan.method).lean:
            try:
                return attach_cohort(
                    bench.network, bench.base.frames, state, CHUNK_DEVICES, dtype=dtype
                )
            except ModelError as error:
                if not error.code.startswith("cohort-"):
                    raise
        self._one_by_one = plan.id
        return None

    def evaluate(
        self, message: Payload, partitions: Sequence[int]
    ) -> list[NDArray[np.int64] | Exception]:
        """Judge a release, see :class:`~simulations.cohort.fleet.CohortFleet`."""
        learners = [attempt(self.learner, p) for p in partitions]
        able = [each for each in learners if isinstance(each, Learner)]
        if not able:
            return [each for each in learners if isinstance(each, Exception)]
        bench = able[0].bench
        state = judged(message, bench)
        with single_thread():
            windows = [torch.from_numpy(each.windows.test_x) for each in able]
            predicted = iter(evaluate_cohort(bench.served(state), windows))
        classes = len(bench.base.record.labels)
        return [
            confusion(each.windows.test_y, next(predicted), classes)
            if isinstance(each, Learner)
            else each
            for each in learners
        ]


def _train(network: CohortNetwork, plan: Plan, learners: Sequence[Learner]) -> list[Outcome]:
    with single_thread():
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
