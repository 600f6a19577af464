"""The engines of a continual run: learners one by one, or many as one batched computation."""

from __future__ import annotations

from collections.abc import Callable

from clients.agent.learner import Learner, Workbench
from clients.agent.residuals import Residuals
from fleet.errors import InputError
from simulations.cohort.batched import BatchedFleet
from simulations.cohort.fleet import CohortFleet, LearnerFleet
from simulations.engines import Engine

__all__ = ["period_fleet"]

FindLearner = Callable[[int], Learner]


class _Period(LearnerFleet):
    """Learners of the period that a run is in, instead of those of a run's configuration."""

    _find: FindLearner
    _bench: Callable[[], Workbench]

    def settle(self, find: FindLearner, bench: Callable[[], Workbench]) -> None:
        """Say where learners and what they share are found."""
        self._find, self._bench, self._nothing = find, bench, Residuals()

    @property
    def bench(self) -> Workbench:
        """What all learners share."""
        return self._bench()

    @property
    def residuals(self) -> Residuals:
        """What compression has lost: continual runs do not compress."""
        return self._nothing

    @property
    def memory_budget_bytes(self) -> int:
        """No limit."""
        return 0

    def learner(self, partition: int) -> Learner:
        """Return a device's learner in this period."""
        return self._find(partition)

    def train_windows(self, partition: int) -> int:
        """Return the windows that a device trains on."""
        return len(self._find(partition).windows.train_y)


class _BatchedPeriod(_Period, BatchedFleet):
    """The same, trained together."""


def period_fleet(
    engine: Engine, workers: int, find: FindLearner, bench: Callable[[], Workbench]
) -> CohortFleet:
    """Return what answers plans in a continual run.

    Args:
        engine: ``loop`` or ``cohort``.
        workers: Threads that train; 0 for one per core.
        find: Returns a device's learner in the present period.
        bench: Returns what they share now.

    Raises:
        InputError: ``scenario-engine`` for an engine that has no simulated time of its own.
    """
    if engine is Engine.loop:
        fleet: _Period = _Period({})
    elif engine is Engine.cohort:
        fleet = _BatchedPeriod({}, workers or None)
    else:
        raise InputError(
            "scenario-engine",
            f"a scenario runs on the engines cohort and loop, not on {engine.value}",
            "fleet simulate --engine cohort --scenario …",
        )
    fleet.settle(find, bench)
    return fleet
