"""Guards by hand, and the releases that a policy's own coordinator makes plans of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from clients.agent.learner import Learner, Windows, workbench
from fleet.adapt.attach import single_thread
from fleet.adapt.base import Base
from fleet.adapt.state import CoreState
from fleet.adapt.train import Guard
from fleet.continual.guards import Anchor, Distil, fisher_information
from fleet.federate.records import Plan
from fleet.federate.wire import Payload, decode_plan, decode_state
from tests.clients.agent.answering.devices import NAME

__all__ = ["answered_by_hand", "fisher_by_hand"]


def answered_by_hand(
    base: Base, windows: Windows, message: Payload, fisher: CoreState | None = None
) -> tuple[Payload, CoreState]:
    """Return what a learner with the plan's guards answers, and where its training ends."""
    plan = decode_plan(message)

    def guards(learner: Learner, _: Plan, release: CoreState) -> Sequence[Guard]:
        made: list[Guard] = [Anchor(release, plan.anchor)] if plan.anchor else []
        if plan.ewc and fisher is not None:
            made.append(Anchor(release, plan.ewc, fisher))
        if plan.distil:
            network, parts = learner.bench.served(release), []
            with torch.no_grad(), single_thread():
                for first in range(0, len(windows.train_y), plan.batch):
                    x = windows.train_x[first : first + plan.batch]
                    parts.append(network(torch.from_numpy(x)))
            made.append(Distil(torch.cat(parts), plan.distil))
        return made

    learner = Learner(NAME, base, windows, guards=guards)
    state = decode_state(message, learner.bench.layout(plan.method))
    delta, result = learner.train(plan, state)
    return learner.encode(plan, delta, result), state + delta


def fisher_by_hand(base: Base, windows: Windows, state: CoreState) -> CoreState:
    """Return the Fisher information of a state over the windows that train, one by one."""
    with single_thread():
        return fisher_information(
            workbench(base).attach("core", state, torch.float32),
            torch.from_numpy(np.array(windows.train_x)),
            torch.from_numpy(windows.train_y),
            windows=32,
            together=False,
        )
