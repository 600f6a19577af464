"""What answers behind a cohort grid: many devices at a call, each named by its partition id."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from clients.agent.learner import Learner, Workbench
from clients.agent.residuals import Residuals
from clients.agent.simulated import bench_of, learner_of, residuals_of, status_of
from fleet.config import RunConfig
from fleet.errors import RoundError, StorageError
from fleet.federate.records import Plan
from fleet.federate.wire import Payload, decode_plan

__all__ = [
    "CohortFleet",
    "EngineLost",
    "LearnerFleet",
    "RunConfigValues",
    "attempt",
    "is_fatal",
    "windows_of",
]

RunConfigValues = Mapping[str, bool | int | float | str]
Answer = TypeVar("Answer")
Given = ParamSpec("Given")


class EngineLost(RoundError):
    """What computes for the devices is gone or unfit: no device can be blamed for it."""


class CohortFleet(Protocol):
    """Virtual devices, asked many at a time.

    A message's array is read-only and its config cannot be changed. An exception in a list is one
    device's; one that is raised is everybody's.
    """

    def status(self, partition: int) -> Payload:
        """Return a device's status as a config without an array."""
        ...

    def train(self, message: Payload, partitions: Sequence[int]) -> list[Payload | Exception]:
        """Answer a plan: of each device, in order, its update or why there is none."""
        ...

    def evaluate(
        self, message: Payload, partitions: Sequence[int]
    ) -> list[NDArray[np.int64] | Exception]:
        """Judge a release: of each device, in order, its confusions or why there are none.

        Confusions are counts ``(classes, classes)`` by true and predicted class.
        """
        ...

    def close(self) -> None:
        """End what answers; nothing is asked afterwards."""
        ...


class LearnerFleet:
    """The devices' real learners, one after the other: the oracle of everything faster.

    Args:
        run_config: The run's configuration in Flower's spelling, see
            :func:`clients.agent.simulated.learner_of`.
    """

    def __init__(self, run_config: RunConfigValues) -> None:
        self._run_config = dict(run_config)

    def status(self, partition: int) -> Payload:
        """Return a device's status as a config without an array."""
        record = status_of(self._run_config, partition).model_dump(mode="json")
        return Payload(np.zeros(0, np.float32), record)

    def train(self, message: Payload, partitions: Sequence[int]) -> list[Payload | Exception]:
        """Answer a plan, see :class:`CohortFleet`."""
        return [attempt(self._update, partition, message) for partition in partitions]

    def evaluate(
        self, message: Payload, partitions: Sequence[int]
    ) -> list[NDArray[np.int64] | Exception]:
        """Judge a release, see :class:`CohortFleet`."""
        return [attempt(self._counts, partition, message) for partition in partitions]

    def close(self) -> None:
        """End nothing: learners have nothing but memory."""

    @property
    def bench(self) -> Workbench:
        """What all learners share."""
        return bench_of(self._run_config)

    @property
    def residuals(self) -> Residuals:
        """What compression has lost of the devices' updates."""
        return residuals_of(self._run_config)

    @property
    def memory_budget_bytes(self) -> int:
        """What a training step of a device may hold; 0 for no limit."""
        return RunConfig.parse(self._run_config).memory_budget

    def learner(self, partition: int) -> Learner:
        """Return a device's learner.

        Raises:
            MismatchError: ``no-such-person`` when the fleet has fewer devices.
        """
        return learner_of(self._run_config, partition)

    def train_windows(self, partition: int) -> int:
        """Return the windows that a device trains on; 0 where that cannot be known."""
        status = attempt(self.status, partition)
        return 0 if isinstance(status, Exception) else int(status.config["train_windows"])

    def _update(self, partition: int, message: Payload) -> Payload:
        return self.residuals.answer(self.learner(partition), partition, message)

    def _counts(self, partition: int, message: Payload) -> NDArray[np.int64]:
        return self.learner(partition).judge(message)


def attempt(
    answer: Callable[Given, Answer], *args: Given.args, **named: Given.kwargs
) -> Answer | Exception:
    """Return what a device answers, or what it raises unless that ends the run."""
    try:
        return answer(*args, **named)
    except Exception as error:
        if is_fatal(error):
            raise
        return error


def windows_of(fleet: CohortFleet, message: Payload, partition: int, *, training: bool) -> int:
    """Return the windows that a device works on for a message; 0 where that cannot be known.

    Those of every local pass are counted where it trains.
    """
    status = attempt(fleet.status, partition)
    if isinstance(status, Exception):
        return 0
    held = int(status.config.get("train_windows" if training else "test_windows", 0))
    plan = attempt(decode_plan, message) if training else None
    return held * plan.epochs if isinstance(plan, Plan) else held


def is_fatal(error: BaseException) -> bool:
    """Tell whether every later device would fail as well: the disk is full, the engine is lost."""
    full = isinstance(error, StorageError) and error.code == "disk-full"
    return full or isinstance(error, EngineLost)
