"""What is due for the private core, and what is served of it: one look at a time.

fit to the release's base → judge beside the release → serve or withdraw → train once a release
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from clients.agent.answering.agent import Agent
from clients.agent.answering.held import Held
from clients.agent.answering.labelled import LARGEST_TRAINING, counted, raw_training
from clients.agent.answering.pace import Errand, Pace, check_known, drops_of, forgets_of
from clients.agent.answering.packing import unpack_progress
from clients.agent.answering.training import RECIPE
from clients.agent.answering.world import World
from clients.agent.config import DeviceConfig
from clients.agent.learner import workbench
from clients.agent.private.bases import base_before, keep_base, sweep_bases
from clients.agent.private.fitting import fitted
from clients.agent.private.learning import helps, judged, learned, recipe_of
from clients.agent.private.record import pack, unpack
from clients.agent.private.serving import Shelf
from clients.agent.private.settings import Personal
from clients.agent.private.split import Sides, split
from clients.agent.serving.kept import KeptRelease
from clients.agent.store.personal import PersonalRow
from fleet.adapt.digest import digest_json
from fleet.adapt.state import CoreState
from fleet.adapt.train import AfterStep, Progress
from fleet.errors import FleetError, MismatchError, RoundError, StorageError
from fleet.federate.records import Plan
from fleet.seeds import generator

__all__ = ["AGAIN_S", "LONGEST_S", "OFF", "POOL", "WANTED", "PrivateCores"]

AGAIN_S = 600.0
"""After a training was refused or failed: how long until the next try."""
LONGEST_S = 3600.0
"""A training of a private core that takes longer is given up."""
POOL = 8
"""Of the newest windows, so many times as many as may train are looked at."""
WANTED = "agent-wanted"
"""A training made room for a message; it goes on from its checkpoint."""
OFF = "personal-off"
"""The owner turned it off during a training; on again, that goes on from its checkpoint."""


@dataclass(frozen=True, eq=False)
class _Found:
    """The release that is served, the private core as it takes it, and what was forgotten so far.

    ``forgets`` and ``drops`` are from before anything was read: what is made of it is kept only
    while they stand.
    """

    release: KeptRelease
    row: PersonalRow | None
    core: CoreState | None
    forgets: int
    drops: int


class PrivateCores:
    """Keeps a device's private core in step with what the fleet brings; one thread may look.

    Args:
        agent: Whose idle time it uses, and whose policy it asks.
        held: Store and models.
        config: Reads the device's configuration.
        world: Clocks, and somebody to tell.
    """

    def __init__(
        self, agent: Agent, held: Held, config: Callable[[], DeviceConfig], world: World
    ) -> None:
        self._agent = agent
        self._decide = partial(agent.training.decide, own=True)
        self._store = held.store
        self._held = held.serving.held
        self._serving = held.serving
        self._config = config
        self._world = world
        self._shelf = Shelf(held.serving, held.store, config)
        self._again = float("-inf")
        self._hopeless = ("", "")

    def look(self) -> str:
        """Do what is due; whatever speaks against it is said and tried again later.

        Returns:
            What it came to, a word: ``off``, ``busy``, ``no-release``, ``dropped``, ``trained``,
            ``current`` when nothing was due, or the reason why it was not trained.
        """
        try:
            if not self._config().personal.on:
                self._shelf.clear()
                return "off"
            with self._agent.aside() as alone:
                return self._alone() if alone else "busy"
        except FleetError as error:
            if error.code not in (WANTED, OFF):
                self._again = self._world.monotonic() + AGAIN_S
            self._world.say("personal.kept", reason=error.code, detail=error.message)
            return error.code

    def _alone(self) -> str:
        served = self._serving.served
        if served is None or not served.number:
            return "no-release"
        release = self._held.kept(served.name)
        try:
            found = self._read(release)
        except (MismatchError, StorageError) as error:
            if isinstance(error, StorageError) and error.code != "personal-damaged":
                raise
            self._shelf.clear()
            self._store.personal.drop()
            self._world.say("personal.dropped", reason=error.code, detail=error.message)
            return "dropped"
        if found.row is not None and found.row.judged.get("state") != release.state.digest:
            found = self._judged(found)
        self._serve(found)
        if found.row is not None and found.row.state == release.state.digest:
            return "current"
        return self._train(found)

    def _read(self, release: KeptRelease) -> _Found:
        """Read the core, and take it along to the base that the device has now.

        Raises:
            MismatchError: Why it cannot be taken along.
            StorageError: ``personal-damaged``, or the disk's.
        """
        forgets, drops = forgets_of(self._store), drops_of(self._store)
        row = self._store.personal.get()
        if row is None:
            return _Found(release, None, None, forgets, drops)
        core, base = unpack(row.payload), self._held.base
        layout = self._held.layout(release.method)
        if (row.base, row.frame, row.layout) != (base.digest, base.frame_digest, layout.digest):
            same = row.base == base.digest
            old = base if same else base_before(self._serving.folder, row.base)
            core = fitted(core, row.frame, old, base, layout)
            before, row = row, self._row(release, core, row.people)
            row = replace(row, release=before.release, state=before.state)
            self._keep(_Found(release, before, core, forgets, drops), row)
            self._world.say("personal.fitted", base=base.digest, before=before.base)
        return _Found(release, row, core, forgets, drops)

    def _judged(self, found: _Found) -> _Found:
        """Ask the windows kept back about the core beside another release than before."""
        assert found.row is not None
        assert found.core is not None
        reading = self._reading(found.release, found.core, self._sides(found.release, 0))
        row = replace(found.row, serves=helps(reading), judged=reading)
        self._store.personal.judge(row.digest, row.serves, reading)
        self._world.say("personal.judged", serves=row.serves, **reading)
        return replace(found, row=row)

    def _train(self, found: _Found) -> str:
        release, options = found.release, self._config().personal
        plan = self._plan(release)
        if plan is None:
            return "no-plan"
        if self._world.monotonic() < self._again:
            return "later"
        known, _ = counted(self._store.windows.counts(), self._held.base.record)
        if known < options.min_windows:
            return "few-windows"
        sides = self._sides(release, plan.seed)
        if not (len(sides.windows.train_y) and len(sides.windows.test_y)):
            return "few-windows"
        if self._hopeless == (release.state.digest, sides.digest):
            return "training-diverged"
        decision = self._decide()
        if not decision.allowed:
            reasons = ", ".join(reason.value for reason in decision.reasons)
            raise RoundError(decision.reasons[0].value, f"not now: the policy says {reasons}")
        self._trained(found, plan, options, sides)
        return "trained"

    def _trained(self, found: _Found, plan: Plan, options: Personal, sides: Sides) -> None:
        release, recipe = found.release, recipe_of(plan, options, found.release.number)
        before = found.row.people if found.row is not None else frozenset()
        start = found.core.digest if found.core is not None else ""
        about = [sides.digest, recipe.id, options.model_dump(mode="json"), start, found.drops]
        errand = Errand(
            f"personal/{release.name}",
            digest_json(about),
            sides.people | before,
            found.forgets,
            self._world.monotonic() + LONGEST_S,
            self._agent.training.budget_s(),
            found.drops,
        )
        kept = self._store.personal_checkpoints
        pace = Pace(errand, self._store, self._world, self._decide, kept)
        budgets = (self._config().policy.memory_budget_bytes, plan.memory_budget)
        self._world.say("personal.started", release=release.number, plan=plan.id)
        try:
            core = learned(
                self._config().name,
                self._held.base,
                sides,
                recipe,
                options,
                release.state,
                found.core,
                memory_budget=min((one for one in budgets if one), default=0),
                resume=self._progress(errand),
                after_step=self._stepping(pace, errand),
            )
        except RoundError as error:
            if error.code == "training-diverged":
                self._hopeless = release.state.digest, sides.digest
                kept.clear()
            raise
        finally:
            self._agent.training.spend(pace.seconds)
        reading = self._reading(release, core, sides)
        row = self._row(release, core, errand.people)
        row = replace(row, serves=helps(reading), judged=reading)
        self._keep(found, row, errand)
        self._world.say("personal.finished", serves=row.serves, **reading)
        self._serve(replace(found, row=row, core=core))

    def _keep(self, found: _Found, row: PersonalRow, errand: Errand | None = None) -> None:
        """Keep a core in the place of the one before, unless it or somebody was to go meanwhile."""
        keep_base(self._serving.folder, self._held.base)
        errand = errand or Errand("", "", row.people, found.forgets, 0.0, 0.0, found.drops)
        with self._store.transaction():
            check_known(self._store, errand)
            self._store.personal.put(row)
            self._store.personal_checkpoints.clear()
        sweep_bases(self._serving.folder, self._held.base.digest)

    def _serve(self, found: _Found) -> None:
        row, core = found.row, found.core
        if row is None or core is None or not row.serves:
            self._shelf.clear()
        elif self._shelf.put(found.release, row.digest, core):
            self._world.say("personal.served", release=found.release.number)

    def _stepping(self, pace: Pace, errand: Errand) -> AfterStep:
        def step(steps: int, snapshot: Callable[[], Progress]) -> None:
            check_known(self._store, errand)
            if not self._config().personal.on:
                pace.save(snapshot)
                raise RoundError(OFF, f"the owner turned it off after step {steps}")
            if self._agent.wanted:
                pace.save(snapshot)
                raise RoundError(WANTED, f"made room for a message after step {steps}")
            pace(steps, snapshot)

        return step

    def _progress(self, errand: Errand) -> Progress | None:
        content = self._store.personal_checkpoints.get(errand.plan, errand.windows)
        try:
            return None if content is None else unpack_progress(content)
        except FleetError as error:
            self._world.say("personal.restarted", reason=error.code)
            return None

    def _plan(self, release: KeptRelease) -> Plan | None:
        """Return the last plan that the device answered, if it trained what the release holds."""
        found = self._store.state.get(RECIPE)
        try:
            plan = Plan.model_validate(found) if found else None
        except ValueError:  # of a later Corefleet, or an earlier one
            return None
        return plan if plan is not None and plan.method == release.method else None

    def _sides(self, release: KeptRelease, seed: int) -> Sides:
        options, about = self._config().personal, self._held.base.record
        newest = min(LARGEST_TRAINING, max(options.min_windows, POOL * options.windows))
        found, classes = raw_training(self._store, about, newest)
        name = self._config().name
        rng = generator(seed, release.number, name, "continual/personal/windows")
        return split(found, classes, about, most=options.windows, rng=rng)

    def _reading(self, release: KeptRelease, core: CoreState, sides: Sides) -> dict[str, Any]:
        found = judged(workbench(self._held.base), release.state, core, sides)
        return {"state": release.state.digest, "number": release.number, **found}

    def _row(self, release: KeptRelease, core: CoreState, people: frozenset[str]) -> PersonalRow:
        base = self._held.base
        return PersonalRow(
            base.digest,
            base.frame_digest,
            core.layout.digest,
            release.method,
            release.number,
            release.state.digest,
            pack(core),
            people,
        )
