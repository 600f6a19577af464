"""What holds a training back from where its windows alone would lead: one place for all engines.

A device asks it for its plan, a simulated one for its strategy's options.
"""

from __future__ import annotations

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

__all__ = ["FISHER_WINDOWS", "Strengths", "guards_for", "weighed"]

FISHER_WINDOWS = 32
"""Windows that the Fisher information of a state is estimated on, one backward pass each."""


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
    asked: Strengths, learner: Learner, plan: Plan, release: CoreState, fisher: CoreState | None
) -> list[Guard]:
    """Return the guards of one training.

    Args:
        asked: How strong each is.
        learner: Who trains; a memory budget of its holds for the second pass of distillation too.
        plan: What it trains.
        release: The state that it starts from, and is pulled to.
        fisher: Which entries mattered before; None where nobody knows, and there is no EWC.

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
        x = learner.windows.train_x
        logits = logits_of(learner.bench.served(release), x, batch=at_once)
        guards.append(Distil(logits, asked.distil, together=at_once))
    return guards


def weighed(
    bench: Workbench, method: str, state: CoreState, windows: Windows, *, together: bool = True
) -> CoreState:
    """Return the Fisher information of a state over a device's labelled windows.

    Args:
        bench: What the device computes with.
        method: What it trains.
        state: Where it is.
        windows: Those that train; the newest and so many more, evenly spaced.
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
