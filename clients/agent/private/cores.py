"""What is due for the private core, and what is served of the device's own: one look at a time.

own statistics, where they are due → fit the core to the release's base → judge beside the release →
serve or withdraw → train once a release
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from clients.agent.answering.agent import Agent
from clients.agent.answering.held import Held
from clients.agent.answering.pace import Errand, Pace, check_known, drops_of, forgets_of
from clients.agent.answering.packing import unpack_progress
from clients.agent.answering.world import World
from clients.agent.calibrating.statistics import Footing
from clients.agent.config import DeviceConfig
from clients.agent.private.bases import base_before, keep_base, sweep_bases
from clients.agent.private.fitting import fitted
from clients.agent.private.judging import Judge
from clients.agent.private.learning import helps, learned, plan_of, recipe_of
from clients.agent.private.record import row_of, unpack
from clients.agent.private.serving import Own, Shelf
from clients.agent.private.settings import Personal
from clients.agent.private.split import Sides
from clients.agent.serving.kept import KeptRelease
from clients.agent.store.personal import PersonalRow
from fleet.adapt.digest import digest_json
from fleet.adapt.state import CoreState
from fleet.adapt.train import AfterStep, Progress
from fleet.errors import FleetError, MismatchError, RoundError, StorageError
from fleet.federate.records import Plan

__all__ = ["AGAIN_S", "LONGEST_S", "OFF", "WANTED", "PrivateCores"]

AGAIN_S = 600.0
"""After a training was refused or failed: how long until the next try."""
LONGEST_S = 3600.0
"""A training of a private core that takes longer is given up."""
WANTED = "agent-wanted"
"""A training made room for a message; it goes on from its checkpoint."""
OFF = "personal-off"
"""The owner turned it off during a training; on again, that goes on from its checkpoint."""


@dataclass(frozen=True, eq=False)
class _Found:
    """The release that is served, the private core as it takes it, and what both compute on.

    ``forgets`` and ``drops`` are from before anything was read: what is made of it is kept only
    while they stand.
    """

    release: KeptRelease
    footing: Footing
    row: PersonalRow | None
    core: CoreState | None
    forgets: int
    drops: int


class PrivateCores:
    """Keeps what is a device's own in step with what the fleet brings; one thread may look.

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
        self._statistics = agent.statistics  # it follows the agent to another base
        self._judge = Judge(held.store, self._held, config)
        self._shelf = Shelf(held.serving, held.store, config)
        self._again = float("-inf")
        self._hopeless = ("", "")

    def look(self) -> str:
        """Do what is due; whatever speaks against it is said and tried again later.

        Returns:
            What it came to for the private core, a word: ``off``, ``busy``, ``no-release``,
            ``dropped``, ``trained``, ``current`` when nothing was due, or the reason why it was not
            trained.
        """
        try:
            config = self._config()
            if not (config.personal.on or config.statistics.own):
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
        self._statistics.look()
        release, personal = self._release(), self._config().personal.on
        if release is None:
            self._shelf.clear()
            return "no-release"
        if not (personal and release.number):
            self._serve(_Found(release, self._statistics.footing(), None, None, 0, 0))
            return "no-release" if personal else "off"
        try:
            found = self._read(release)
        except (MismatchError, StorageError) as error:
            if isinstance(error, StorageError) and error.code != "personal-damaged":
                raise
            self._shelf.clear()
            self._store.personal.drop()
            self._world.say("personal.dropped", reason=error.code, detail=error.message)
            return "dropped"
        if found.row is not None and not _said_of(found.row, found):
            found = self._judged(found)
        self._serve(found)
        if found.row is not None and found.row.state == release.state.digest:
            return "current"
        return self._train(found)

    def _release(self) -> KeptRelease | None:
        """Return the release that is served; None where nothing of the device's own is for it."""
        served = self._serving.served
        if served is None or not (served.number or self._config().statistics.own):
            return None
        if not served.number:
            bare = KeptRelease.bare(self._held.bases.first)
            if served.name == bare.name:
                return bare
        return self._held.kept(served.name)

    def _read(self, release: KeptRelease) -> _Found:
        """Read the core, and take it along to the base that the device has now.

        Raises:
            MismatchError: Why it cannot be taken along.
            StorageError: ``personal-damaged``, or the disk's.
        """
        forgets, drops = forgets_of(self._store), drops_of(self._store)
        row, footing = self._store.personal.get(), self._statistics.footing()
        if row is None:
            return _Found(release, footing, None, None, forgets, drops)
        core, base = unpack(row.payload), self._held.base
        layout = self._held.layout(release.method)
        if (row.base, row.frame, row.layout) != (base.digest, base.frame_digest, layout.digest):
            same = row.base == base.digest
            old = base if same else base_before(self._serving.folder, row.base)
            core = fitted(core, row.frame, old, base, layout)
            before, row = row, row_of(core, base, release, row.people)
            row = replace(row, release=before.release, state=before.state)
            self._keep(_Found(release, footing, before, core, forgets, drops), row)
            self._world.say("personal.fitted", base=base.digest, before=before.base)
        return _Found(release, footing, row, core, forgets, drops)

    def _judged(self, found: _Found) -> _Found:
        """Ask the windows kept back about the core beside another release than before."""
        assert found.row is not None
        assert found.core is not None
        reading = self._judge.core(found.release, found.core, found.footing)
        row = replace(found.row, serves=helps(reading), judged=reading)
        self._store.personal.judge(row.digest, row.serves, reading)
        self._world.say("personal.judged", serves=row.serves, **reading)
        return replace(found, row=row)

    def _train(self, found: _Found) -> str:
        release, options = found.release, self._config().personal
        plan = plan_of(self._store, release)
        if plan is None:
            return "no-plan"
        if self._world.monotonic() < self._again:
            return "later"
        if self._judge.known() < options.min_windows:
            return "few-windows"
        sides = self._judge.sides(release, plan.seed)
        if not (len(sides.windows.train_y) and len(sides.windows.test_y)):
            return "few-windows"
        if self._hopeless == (release.state.digest, found.footing.named(sides.digest)):
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
        windows, people = found.footing.named(sides.digest), sides.people | found.footing.people
        about = [windows, recipe.id, options.model_dump(mode="json"), start, found.drops]
        errand = Errand(
            f"personal/{release.name}",
            digest_json(about),
            people | before,
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
                bench=found.footing.bench,
                memory_budget=min((one for one in budgets if one), default=0),
                resume=self._progress(errand),
                after_step=self._stepping(pace, errand),
            )
        except RoundError as error:
            if error.code == "training-diverged":
                self._hopeless = release.state.digest, windows
                kept.clear()
            raise
        finally:
            self._agent.training.spend(pace.seconds)
        reading = self._judge.core(release, core, found.footing, sides)
        row = row_of(core, self._held.base, release, errand.people)
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
        row, footing = found.row, found.footing
        own = Own()
        if row is not None and row.serves:
            own = Own(row.digest, found.core, footing.kept)
        elif self._judge.statistics(found.release, footing):
            own = Own(kept=footing.kept)
        if not own:
            self._shelf.clear()
        elif self._shelf.put(found.release, own):
            statistics = {"statistics": footing.digest} if footing.digest else {}
            self._world.say("personal.served", release=found.release.number, **statistics)

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


def _said_of(row: PersonalRow, found: _Found) -> bool:
    """Tell whether a core was judged beside this release and under these statistics."""
    said = row.judged.get("state"), row.judged.get("statistics", "")
    return said == (found.release.state.digest, found.footing.digest)
