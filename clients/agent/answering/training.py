"""The training job: from a plan to an update in the outbox, or to a reason why not.

A plan is answered once: its update goes to the outbox, the journal and the marks of what was
learned from in one transaction, and whoever asks again gets the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from clients.agent.answering.between import guarding_of, least, residual_of, space_of
from clients.agent.answering.labelled import labelled
from clients.agent.answering.pace import Errand, Pace, check_known, forgets_of
from clients.agent.answering.packing import (
    pack_fisher,
    pack_residual,
    pack_update,
    unpack_progress,
    unpack_update,
)
from clients.agent.answering.world import World
from clients.agent.calibrating.statistics import Footing, Statistics
from clients.agent.config import DeviceConfig
from clients.agent.decisions import DecisionLog
from clients.agent.drifting.participation import changed_s, rounds_left, spend
from clients.agent.learner import Learner, Residual
from clients.agent.policy import Decision, Refusal, may_train
from clients.agent.pseudo.labelling import Labelling
from clients.agent.store import Store
from clients.link.records import STOPPING
from fleet.adapt.base import Base
from fleet.adapt.state import CoreState
from fleet.adapt.train import Progress
from fleet.errors import FleetError, RoundError, StorageError
from fleet.federate.records import Plan
from fleet.federate.wire import Payload

__all__ = ["RECIPE", "Training"]

MARKS = "training.marks"
RECIPE = "training.recipe"
"""Key of the state: the last plan that was answered, as JSON."""
TODAY = "training.today"


class Training:
    """Trains for plans, one at a time; the caller sees to that.

    Args:
        store: Windows, outbox, journal and checkpoint.
        config: Reads the device's configuration, which its owner may change at any time.
        log: Where the policy's decisions go.
        world: Clocks and sensors.
        statistics: The device's own, which it trains under where there are any.
    """

    def __init__(
        self,
        store: Store,
        config: Callable[[], DeviceConfig],
        log: DecisionLog,
        world: World,
        statistics: Statistics,
    ) -> None:
        self._store = store
        self._config = config
        self._log = log
        self._world = world
        self._statistics = statistics
        self._labelling = Labelling(store, config, world)
        self._last: Decision | None = None

    def answered(self, plan: Plan) -> Payload | None:
        """Return the answer that a plan had before; None when it had none.

        Raises:
            RoundError: ``already-answered`` when its update made room for others.
        """
        kept = self._store.outbox.get(plan.id)
        if kept is None:
            return None
        if kept.payload is None:
            raise RoundError(
                "already-answered", f"plan {plan.id} was answered, and its update is kept no more"
            )
        self._note(plan, "repeated", {})
        return unpack_update(kept.payload)

    def decide(self, own: bool = False) -> Decision:
        """Read the sensors and decide whether the device may train now; the decision is logged.

        Args:
            own: For the private core: what makes a round of the fleet worth it, new labels and
                drift, is not asked for.
        """
        readings = replace(self._world.read(), trained_today_s=self._trained_today_s())
        if not own:
            readings = replace(
                readings,
                new_labels=self._store.labels.since(self._oldest_mark()),
                rounds_left=rounds_left(self._store, self._config().drift),
                changed_s=changed_s(self._store),
            )
        decision = may_train(self._config().policy, readings, self._world.local(), self._last)
        self._last = decision
        self._log.write(decision)
        return decision

    def train(self, plan: Plan, state: CoreState, base: Base, until: float) -> Payload:
        """Train as a plan asks and put the update into the outbox.

        Args:
            plan: What is asked.
            state: The core state that training starts from.
            base: The device's base, which is the plan's.
            until: Monotonic seconds at which the plan's time is over.

        Raises:
            RoundError: Why the device does not train, or stopped; codes of ``policy.Refusal``,
                ``over-time``, ``agent-stopping``, ``person-forgotten``, ``training-diverged``.
            MismatchError: ``no-windows``.
            StorageError: Nothing of an update was kept.
        """
        try:
            decision = self.decide()
            if not decision.allowed:
                raise _refused(decision)
            return self._trained(plan, state, base, until)
        except FleetError as error:
            self._note(plan, "refused", {"reason": error.code, "detail": error.message})
            if not (error.code == STOPPING or isinstance(error, StorageError)):
                self._drop_checkpoint()
            raise

    def _trained(self, plan: Plan, state: CoreState, base: Base, until: float) -> Payload:
        config = self._config()
        forgets = forgets_of(self._store)
        found = labelled(self._store, base.record)
        guarding = guarding_of(self._store, plan, self._world)
        begun = self._labelling.begun(plan, found, base.record)
        footing = self._footing(plan, guarding.named(begun.named(found.digest)))
        began, budget_s = self._world.monotonic(), self.budget_s()
        try:
            chosen = self._labelling.take(plan, state, found, footing, begun, until, budget_s)
            budget = least(config.policy.memory_budget_bytes, plan.memory_budget)
            learner = Learner(
                config.name,
                base,
                chosen.joined(found.windows),
                memory_budget_bytes=guarding.budget(budget, state.layout.size),
                bench=footing.bench,
                guards=guarding.make,
            )
            learner.check_windows()
            windows = footing.named(guarding.named(chosen.named(found.digest)))
            people = found.people | chosen.people | guarding.people | footing.people
            resume = self._progress(plan, windows)
            marks = self._store.labels.mark()
            detail: dict[str, Any] = {
                "windows": len(found.windows.train_y),
                "from_step": resume.steps if resume else 0,
                **chosen.said,
            }
            if footing.digest:
                detail["statistics"] = footing.digest
            left = max(0.0, budget_s - (self._world.monotonic() - began))
            errand = Errand(plan.id, windows, people, forgets, until, left)
            with self._store.transaction():
                # Who was forgotten while statistics were taken is named in no journal.
                check_known(self._store, errand)
                self._labelling.keep(chosen)
                self._store.journal.add(plan.id, plan.round, "started", sorted(people), detail)
            self._world.say("training.started", plan=plan.id, round=plan.round, **detail)
            pace = Pace(errand, self._store, self._world, self.decide)
            delta, result = learner.train(plan, state, resume=resume, after_step=pace)
        finally:
            self.spend(self._world.monotonic() - began)
        fisher = guarding.weighed(learner, state + delta, found.windows)
        residual = residual_of(self._store, plan, delta.layout.size, self._world)
        answer = learner.encode_with(plan, delta, result, residual)
        self._finish(plan, answer, fisher, errand, marks, {"seconds": round(pace.seconds, 3)})
        self._world.say("training.finished", plan=plan.id, round=plan.round, steps=result.steps)
        return answer[0]

    def _finish(
        self,
        plan: Plan,
        answer: tuple[Payload, Residual | None],
        fisher: CoreState | None,
        errand: Errand,
        marks: tuple[int, int],
        detail: dict[str, Any],
    ) -> None:
        people = sorted(errand.people)
        with self._store.transaction():
            check_known(self._store, errand)
            self._store.outbox.put(plan.id, plan.round, pack_update(answer[0]), people)
            if answer[1] is not None:
                self._store.residuals.put(space_of(plan), pack_residual(answer[1]), people)
            if fisher is not None:
                self._store.fishers.put(space_of(plan), pack_fisher(fisher), people)
            self._store.checkpoints.clear()
            self._store.journal.add(plan.id, plan.round, "finished", people, detail)
            self._store.state.put(RECIPE, plan.model_dump(mode="json"))
            kept = [list(marks), *self._marks()][: self._config().policy.label_rounds]
            self._store.state.put(MARKS, kept)
            spend(self._store, self._config().drift, self._world.now())

    def _footing(self, plan: Plan, windows: str) -> Footing:
        """Return the statistics to train under: a checkpoint's, else the newest."""
        if self._store.checkpoints.plan() == plan.id:
            for footing in (self._statistics.taken(), self._statistics.shared):
                if self._store.checkpoints.get(plan.id, footing.named(windows)) is not None:
                    return footing
        return self._statistics.take()

    def _progress(self, plan: Plan, windows: str) -> Progress | None:
        """Return what is left of a killed training for this plan, and drop any other's."""
        content = self._store.checkpoints.get(plan.id, windows)
        if content is not None:
            try:
                return unpack_progress(content)
            except FleetError as error:
                self._world.say("training.dropped", plan=plan.id, reason=error.code)
        elif dropped := self._store.checkpoints.plan():
            self._world.say("training.dropped", plan=dropped, reason="another plan or windows")
        self._store.checkpoints.clear()
        return None

    def _marks(self) -> list[list[int]]:
        found = self._store.state.get(MARKS, [])
        return [list(mark) for mark in found]

    def _oldest_mark(self) -> tuple[int, int]:
        """Return from where on labels are new: before the first training of the last few."""
        marks = self._marks()
        if len(marks) < self._config().policy.label_rounds:
            return 0, 0
        window, statement = marks[self._config().policy.label_rounds - 1]
        return window, statement

    def budget_s(self) -> float:
        """Return the seconds that the policy leaves for today; infinite without a limit."""
        limit = self._config().policy.max_training_s_per_day
        return max(0.0, limit - self._trained_today_s()) if limit else math.inf

    def _trained_today_s(self) -> float:
        found = self._store.state.get(TODAY, {})
        return float(found["seconds"]) if found.get("day") == _day(self._world.local()) else 0.0

    def spend(self, seconds: float) -> None:
        """Count seconds of training to today's."""
        today = {"day": _day(self._world.local()), "seconds": self._trained_today_s() + seconds}
        self._note_state(TODAY, today)

    def _drop_checkpoint(self) -> None:
        try:
            self._store.checkpoints.clear()
        except FleetError as error:  # it fits no other plan, so it is dropped by the next
            self._world.say("store.refused", reason=error.code, detail=error.message)

    def _note_state(self, key: str, value: Any) -> None:
        try:
            self._store.state.put(key, value)
        except FleetError as error:  # a full disk must not hide why training ended
            self._world.say("store.refused", reason=error.code, detail=error.message)

    def _note(self, plan: Plan, event: str, detail: dict[str, Any]) -> None:
        self._world.say(f"training.{event}", plan=plan.id, round=plan.round, **detail)
        try:
            self._store.journal.add(plan.id, plan.round, event, (), detail)
        except FleetError as error:
            self._world.say("store.refused", reason=error.code, detail=error.message)


def _refused(decision: Decision) -> RoundError:
    reasons = ", ".join(reason.value for reason in decision.reasons)
    text = f"not now, because the policy says: {reasons}"
    if Refusal.NO_DRIFT in decision.reasons:
        text += f" (nothing changed since {_when(decision.readings.changed_s)})"
    return RoundError(decision.reasons[0].value, text)


def _when(at_s: float | None) -> str:
    if at_s is None:
        return "the device joined"
    return datetime.fromtimestamp(at_s, timezone.utc).isoformat(timespec="minutes")


def _day(local: datetime) -> str:
    return local.date().isoformat()
