"""Local-only: every device adapts alone, with the same steps, and nothing is ever sent.

The control that tells what federation adds: cores of the same rank, trained for the same rounds
from the same seeds, each continuing from the device's own last core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from clients.agent.learner import Learner
from fleet.adapt.base import Base
from fleet.adapt.state import CoreState
from fleet.federate.records import Plan
from server.coordinator import Task

__all__ = ["adapt_alone"]


def adapt_alone(
    learner: Learner, base: Base, task: Task, rounds: int, on_round: Callable[[], None]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Train one device alone.

    Returns:
        Confusion counts before and after, ``(classes, classes)`` each.
    """
    state = CoreState.zero(task.layout)
    before = learner.evaluate(state)
    for number in range(1, rounds + 1):
        delta, _ = learner.train(_plan(base, task, state, number), state)
        state = state + delta
        on_round()
    return before, learner.evaluate(state)


def _plan(base: Base, task: Task, state: CoreState, number: int) -> Plan:
    return Plan(
        round=number,
        base=base.digest,
        frame=base.frame_digest,
        layout=task.layout.digest,
        release=0,
        state=state.digest,
        method=task.method,
        rank=task.rank,
        epochs=task.epochs,
        batch=task.batch,
        optimiser=task.optimiser,
        learning_rate=task.learning_rate,
        momentum=task.momentum,
        seed=task.seed,
        weight_cap=task.weight_cap,
        deadline_s=1.0,
        max_steps=task.max_steps,
        memory_budget=task.memory_budget,
    )


def adapt_all(
    learners: Iterable[Learner],
    base: Base,
    task: Task,
    rounds: int,
    on_round: Callable[[], None],
) -> tuple[dict[str, NDArray[np.int64]], dict[str, NDArray[np.int64]]]:
    """Train every device alone, one after the other.

    Args:
        learners: Made as they are asked for, so that of many devices one is held.
        base: The base that all start from.
        task: What they train.
        rounds: Rounds of each.
        on_round: Called after each round of each device.

    Returns:
        Confusion counts ``(classes, classes)`` by device, before and after.
    """
    before, after = {}, {}
    for learner in learners:
        before[learner.device], after[learner.device] = adapt_alone(
            learner, base, task, rounds, on_round
        )
    return before, after
