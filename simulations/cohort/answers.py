"""From what a fleet answers to Flower's records, as the devices' own bridge makes them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from flwr.app import Error, RecordDict
from numpy.typing import NDArray

from clients import bridge
from clients.agent.learner import metrics_of
from fleet.errors import InputError, RoundError
from fleet.federate.wire import Payload
from server import flower
from simulations.cohort.fleet import CohortFleet, attempt, is_fatal

__all__ = ["ask"]

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
# New records for each device: a reply belongs to who receives it.
Records = RecordDict | Error


def ask(fleet: CohortFleet, kind: str, message: Payload, partitions: list[int]) -> list[Records]:
    """Return the records of each device's reply, in order; an error is its own reply.

    Args:
        fleet: What answers.
        kind: ``train``, ``evaluate`` or ``query.status``.
        message: What all are asked.
        partitions: Who is asked.

    Raises:
        StorageError: When a device found the disk full.
    """
    found = attempt(_ask, fleet, kind, message, partitions)
    if isinstance(found, Exception):
        return [_failure(found) for _ in partitions]
    if len(found) != len(partitions):
        wrong = ValueError(f"{len(found)} answers of {len(partitions)} devices")
        return [_failure(wrong) for _ in partitions]
    return found


def _ask(fleet: CohortFleet, kind: str, message: Payload, partitions: list[int]) -> list[Records]:
    if kind == "train":
        updates = fleet.train(message, partitions)
        return [_records(each, bridge.update_content) for each in updates]
    if kind == "evaluate":
        return [_records(each, _evaluation) for each in fleet.evaluate(message, partitions)]
    return [bridge.status_content(fleet.status(each).config) for each in partitions]


def _evaluation(counts: NDArray[np.int64]) -> RecordDict:
    return bridge.metrics_content(metrics_of(counts))


def _records(answer: Answer | Exception, write: Callable[[Answer], RecordDict]) -> Records:
    if isinstance(answer, Exception):
        return _failure(answer)
    records = attempt(write, answer)
    return _failure(records) if isinstance(records, Exception) else records


def _failure(error: Exception) -> Records:
    """Return what a device sends that declines or fails, as bridge and grid make it."""
    if is_fatal(error):
        raise error
    if isinstance(error, (InputError, RoundError)):
        return bridge.declined_content(error)
    logger.debug("a device raised an exception", exc_info=error)
    code = flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    return Error(code, f"{type(error)}:<'{error}'>")
