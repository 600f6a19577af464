"""What holds a training back from where its windows alone would lead: one place for all engines.

A device asks it for its plan, a simulated one for its strategy's options.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from clients.agent.continual_labels import logits_of
from fleet.adapt.attach import single_thread
from fleet.adapt.state import CoreState
from fleet.adapt.train import Guard
from fleet.continual.guards import Anchor, Distil, fisher_information
from fleet.federate.records import Plan

if TYPE_CHECKING:
    from clients.agent.learner import Learner, Windows, Workbench

__all__ = ["FISHER_WINDOWS", "TEACHER_WINDOWS", "Strengths", "guards_for", "weighed"]

FISHER_WINDOWS = 32
"""Windows that the Fisher information of a state is estimated on, one backward pass each."""
TEACHER_WINDOWS = 32
"""Most windows that a teacher looks at at once under a memory budget."""


class Strengths(Protocol):
    """How strong each guard is, 0 for none: of a plan, or of ``ContinualOptions``."""

    @property
    def anchor(self) -> float:
        """Of L2 to the release."""
        ...

    @property
    def ewc(self) -> float:
        """Of elastic weight consolidation."""
        ...

    @property
    def distil(self) -> float:
        """Of distillation from the release."""
        ...


def guards_for(
    asked: Strengths,
    learner: Learner,
    plan: Plan,
    release: CoreState,
    fisher: CoreState | None,
    *,
    beforehand: bool = False,
) -> list[Guard]:
    """Return the guards of one training.

    Args:
        asked: How strong each is.
        learner: Who trains; a memory budget of its holds for the second pass of distillation too.
        plan: What it trains.
        release: The state that it starts from, and is pulled to.
        fisher: Which entries mattered before; None where nobody knows, and there is no EWC.
        beforehand: Whether distillation asks the release of all windows now, once for all epochs;
            else in each step of its own, so that a training can be watched and stopped.

    Raises:
        InputError: ``memory-budget-too-small``.
    """
    guards: list[Guard] = []
    if asked.anchor:
        guards.append(Anchor(release, asked.anchor))
    if asked.ewc and fisher is not None:
        guards.append(Anchor(release, asked.ewc, fisher))
    if asked.distil:
        cut = learner.memory_plan(plan.method, plan.batch)
        at_once = cut.windows if cut else None
        # Its network is dense, so a window takes more of it than of the lean one's plan.
        size = max(1, min(at_once // 2, TEACHER_WINDOWS)) if at_once else None
        teacher = partial(logits_of, learner.bench.served(release), batch=size)
        told = teacher(torch.from_numpy(learner.windows.train_x)) if beforehand else teacher
        guards.append(Distil(told, asked.distil, together=at_once))
    return guards


def weighed(
    bench: Workbench, method: str, state: CoreState, windows: Windows, *, together: bool = True
) -> CoreState:
    """Return the Fisher information of a state over a device's labelled windows.

    Args:
        bench: What the device computes with.
        method: What it trains.
        state: Where it is.
        windows: Those that train; it is of at most :data:`FISHER_WINDOWS` of them, evenly spaced.
        together: See :func:`fleet.continual.guards.fisher_information`.
    """
    with single_thread():
        return fisher_information(
            bench.attach(method, state, torch.float32),
            torch.from_numpy(windows.train_x),
            torch.from_numpy(windows.train_y),
            windows=FISHER_WINDOWS,
            together=together,
        )
