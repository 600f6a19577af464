"""What one training leaves for the next: what compression lost, and which entries mattered.

Both belong to one base, frames and layout, and are written with the update that they come from.

Laws (tests/clients/agent/answering/test_guarding.py): a plan without guards neither reads nor moves
the Fisher information; what is damaged or of another layout is dropped and said, never an error; a
training that was killed goes on under the one that it began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clients.agent.answering.packing import unpack_fisher, unpack_residual
from clients.agent.answering.world import World
from clients.agent.guarding import guards_for, weighed
from clients.agent.learner import Learner, MakeGuards, Residual, Windows
from clients.agent.store import Store
from fleet.adapt.digest import digest_json
from fleet.adapt.state import CoreState
from fleet.adapt.train import Guard
from fleet.continual.guards import joined_fisher
from fleet.errors import FleetError, StorageError
from fleet.federate.records import Plan

__all__ = ["EWC_KEEP", "Guarding", "guarding_of", "least", "residual_of", "space_of"]

EWC_KEEP = 0.9
"""What of the Fisher information is left after another training."""
GUARD_ARRAYS = 8
"""Arrays as large as a core state that guards may hold in a step, off its memory budget."""


def space_of(plan: Plan) -> str:
    """Name what a plan's core states belong to: of another base, frame or layout none add."""
    return f"{plan.base}/{plan.frame}/{plan.layout}"


def least(one: int, other: int) -> int:
    """Return the smaller of two memory budgets, where 0 is none."""
    return min(one, other) if one and other else one or other


def residual_of(store: Store, plan: Plan, size: int, world: World) -> Residual | None:
    """Return what compression lost of the updates before, ``(size,)``; None for none that fits."""
    if plan.compression == "none":
        return None
    content = store.residuals.get(space_of(plan))
    try:
        lost = None if content is None else unpack_residual(content)
    except FleetError as error:
        world.say("training.residual-dropped", plan=plan.id, reason=error.code)
        return None
    return lost if lost is not None and lost.shape == (size,) else None


@dataclass(frozen=True, eq=False)
class Guarding:
    """What holds the training for one plan back.

    Args:
        plan: Says how strong each guard is.
        fisher: Which entries the trainings before leaned on; None where nobody knows, or the plan
            does not ask for EWC.
        people: Whose windows that was made of.
    """

    plan: Plan
    fisher: CoreState | None = None
    people: frozenset[str] = frozenset()

    @property
    def make(self) -> MakeGuards | None:
        """What a learner makes its guards with; None for a plan without any."""
        plan = self.plan
        return self._guards if plan.anchor or plan.ewc or plan.distil else None

    def budget(self, limit_bytes: int, size: int) -> int:
        """Return what of a step's memory budget (0 for none) is left beside the guards.

        Distillation's second pass runs in the parts of the first, after it; what is left to count
        are arrays of ``size`` float32 numbers.
        """
        if not limit_bytes or self.make is None:
            return limit_bytes
        return max(1, limit_bytes - GUARD_ARRAYS * 4 * size)

    def named(self, windows: str) -> str:
        """Return the digest of the windows that are trained on, and of the Fisher information."""
        return windows if self.fisher is None else digest_json([windows, self.fisher.digest])

    def weighed(self, learner: Learner, after: CoreState, windows: Windows) -> CoreState | None:
        """Return the Fisher information for the trainings to come.

        Args:
            learner: Who trained.
            after: Where that has led, the core state.
            windows: Those with a label that somebody gave them.

        Returns:
            None where the plan does not ask for EWC, or the numbers are not finite.
        """
        if not self.plan.ewc:
            return None
        # One window after the other fits whatever a step fits.
        now = weighed(learner.bench, self.plan.method, after, windows, together=False)
        joined = joined_fisher(self.fisher, now, EWC_KEEP)
        return joined if _sound(joined) else None

    def _guards(self, learner: Learner, plan: Plan, release: CoreState) -> Sequence[Guard]:
        return guards_for(plan, learner, plan, release, self.fisher)


def guarding_of(store: Store, plan: Plan, world: World) -> Guarding:
    """Return the guards that a plan asks for, with what the store has for them.

    Args:
        store: Where the Fisher information is.
        plan: What is asked.
        world: Told of one that is damaged, or of another layout, and so dropped.

    Raises:
        StorageError: The disk's.
    """
    if not plan.ewc:
        return Guarding(plan)
    try:
        kept = store.fishers.get(space_of(plan))
        if kept is None:
            return Guarding(plan)
        fisher = unpack_fisher(kept[0])
        if fisher.layout.digest != plan.layout or not _sound(fisher):
            raise StorageError("fisher-damaged", "the Fisher information is of another layout", "")
    except StorageError as error:
        if error.code != "fisher-damaged":
            raise
        world.say("training.fisher-dropped", plan=plan.id, reason=error.code)
        return Guarding(plan)
    return Guarding(plan, fisher, kept[1])


def _sound(fisher: CoreState) -> bool:
    return all(
        bool(np.isfinite(array).all() and (array >= 0).all()) for array in fisher.arrays.values()
    )
