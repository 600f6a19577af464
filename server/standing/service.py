"""The service: one loop that carries out what the registry says, and goes on where it was cut off.

    look who is there ─► orders ─► the open round, or the next one that is due ─► releases on their
    way ─► a heartbeat ─► again

It decides nothing by itself: what is to be done stands in the registry (policy, orders, the fleet's
release, pins), what to do with a round's answers is the coordinator's, and every step that counts
is committed before the next one begins. Killed anywhere and started again, it ends in the same
release (tests/server/standing/test_resume.py).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from flwr.serverapp import Grid

from fleet.errors import FleetError, InputError, StorageError
from fleet.federate.admission import Reason
from fleet.federate.releases import Release
from fleet.federate.rule import read_rule
from server import coordinator as c
from server.asking import POLL_S, Asking
from server.registry import Registry
from server.registry.absences import Absence
from server.registry.orders import Order
from server.registry.policies import PolicyRow
from server.registry.records import RoundRow
from server.registry.replay import recorded_rule
from server.registry.upcoming import next_round
from server.standing.collecting import ACTOR, Collection
from server.standing.delivery import Deliveries
from server.standing.eligibility import Absent, History, eligible
from server.standing.judging import LONGEST_EVALUATION_S, Judges
from server.standing.moving import Moves
from server.standing.nodes import Roster
from server.standing.ordering import Desk
from server.standing.planning import (
    Bench,
    begun,
    resumed,
    rule_record,
    starting,
)
from server.standing.policy import ON_ORDER, FleetPolicy
from server.standing.world import World

__all__ = ["BEAT_S", "Service"]

BEAT_S = 5.0
"""How often the service says that it is alive."""
SHOWN = 5
# An update costs about what its plan costs, and a little for framing.
FRAME_BYTES = 3000
FLOAT_BYTES = 4


@dataclass
class Service:
    """The standing service of one fleet.

    Args:
        grid: Any Flower grid.
        registry: What the fleet is and what it is to do.
        world: Clock, waiting, words.
    """

    grid: Grid
    registry: Registry
    world: World
    asking: Asking = field(init=False)
    roster: Roster = field(init=False)
    bench: Bench = field(init=False)
    deliveries: Deliveries = field(init=False)
    judges: Judges = field(init=False)
    desk: Desk = field(init=False)
    _stopping: Callable[[], bool] = field(init=False)
    _started_at_s: float = field(init=False)
    _beat_at: float = field(init=False, default=float("-inf"))
    _doing: dict[str, Any] = field(init=False, default_factory=dict)
    _settled: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        world = self.world
        self.registry = self.registry.for_service()
        self.asking = Asking(self.grid, world.now, self._let_pass, "fleet")
        self.roster = Roster(self.asking, self.registry, world)
        self.bench = Bench(self.registry)
        parts = (self.asking, self.roster, self.registry, self.bench, world)
        self.deliveries, self.judges = Deliveries(*parts), Judges(*parts)
        moves = Moves(self.registry, self.bench, world)
        self.desk = Desk(self.registry, world, self._judge, moves.rebase, self.judges.busy)
        self._stopping = lambda: False
        self._started_at_s = world.clock()

    def run(self, stopping: Callable[[], bool]) -> None:
        """Serve until ``stopping`` says so; an open round stays open for the next service.

        Raises:
            FleetError: What cannot be gone on with, e.g. a registry that cannot be written, or that
                has another service (``registry-served``, ``lease-lost``).
        """
        self._stopping = stopping
        self.world.say("service.started", pid=self.world.pid, version=self.world.version)
        try:
            while not stopping():
                if not self.step():
                    self.asking.let_pass(POLL_S)
        finally:
            # What ended the service counts, not that the lease now has to expire.
            with suppress(StorageError):
                self.registry.lease.give_back()
        self.world.say("service.stopped", pid=self.world.pid)

    def step(self) -> bool:
        """Look once at everything there is to do, and do it; tell whether there was something.

        Raises:
            FleetError: As :meth:`run`.
        """
        if self.registry.lease.epoch is None:
            epoch = self.registry.lease.take(self.world.holder, self.world.gone)
            self.world.say("service.leads", epoch=epoch, pid=self.world.pid)
            if self.world.sign is not None:
                self.registry.signers.add(self.world.sign.public, actor=ACTOR)
        self._beat()
        self.roster.look()
        if not self._settled:
            self.desk.settle()
            self._settled = True
        found = self.registry.open_round()
        if found is not None:
            releases = self.registry.releases
            start = releases.load(found.row.plan.release)
            memory = releases.memory(start.number, recorded_rule(found.row))
            state = resumed(found, start, releases.next_number(), memory)
            values = {"accepted": len(found.updates), "unanswered": list(found.unanswered)}
            self.world.say("round.resumed", round=state.round, plan=found.row.plan.id, **values)
            self._conduct(found.row, state)
            return True
        self.desk.clear()
        done = [bool(self.deliveries.tell()), self._evaluate(), self._hear_judges()]
        return self._next_round() or any(done)

    def _evaluate(self) -> bool:
        """Have releases judged as the policy says; once each, the newest also after a restart."""
        held, newest = self.registry.policy.newest(), self.registry.releases.next_number() - 1
        every = held.policy.evaluate_every if held else 0
        if not every:
            self.judges.want_none()
            return False
        if newest >= 1 and newest % every == 0:
            self.judges.want(newest)
        begun = False
        while (number := self.judges.next_wanted()) is not None:
            begun = True
            try:
                self._judge(number)
            except InputError as error:  # it was withdrawn, say
                self.world.say("release.unjudged", release=number, why=error.message)
        return begun

    def _judge(self, number: int) -> None:
        held = self.registry.policy.newest()
        self.judges.judge(number, held.policy.deadline_s if held else LONGEST_EVALUATION_S)

    def _hear_judges(self) -> bool:
        ended = self.judges.hear()
        for release, result in ended.items():
            self.desk.evaluated(release, result)
        return bool(ended)

    def _next_round(self) -> bool:
        order, self.desk.start = self.desk.start, None
        held = self.registry.policy.newest()
        if held is None:
            step = "" if self.registry.bases.all() else "fleet base install FILE"
            self._wait_for(order, "there is no policy: fleet policy set", step)
            return False
        if order is None and not self._due(held.policy):
            return False
        try:
            start = starting(self.registry, self.bench, held.policy, self.world.sign)
        except StorageError:
            raise
        except FleetError as error:
            self._wait_for(order, error.message, error.hint)
            return False
        return self._open(held, start, order)

    def _due(self, policy: FleetPolicy) -> bool:
        """Tell whether the pause after the last round is over and another one is wanted."""
        number, _ = next_round(self.registry)
        if not policy.every_s or (policy.rounds and number > policy.rounds):
            why = ON_ORDER if not policy.every_s else f"all {policy.rounds} rounds are made"
            self._doing = {"phase": "idle", "round": number - 1, "why": why}
            return False
        rounds = self.registry.rounds.all(newest=1)
        closed = rounds[-1].closed if rounds else None
        since = self.world.clock() - closed.at_s if closed else policy.every_s
        # A clock that was set back must not stop the fleet.
        if 0 <= since < policy.every_s:
            self._doing = {"phase": "idle", "round": number - 1}
            return False
        return True

    def _open(self, held: PolicyRow, start: Release, order: Order | None) -> bool:
        policy = held.policy
        number, attempt = next_round(self.registry)
        chosen, absent = eligible(
            policy,
            self.registry.devices.all(),
            self.world.clock(),
            History(
                round=number,
                attempt=attempt,
                online=frozenset(self.roster.here()),
                why_not=self.roster.why_not(),
                silent=self.roster.silences(),
                spent=self.registry.observations.spent(),
                cost=2 * (FLOAT_BYTES * start.state.layout.size + FRAME_BYTES),
                base=start.base,
                bases=self.registry.releases.bases(),
            ),
        )
        memory = self.registry.releases.memory(start.number, read_rule(policy.rule))
        free = self.registry.releases.next_number()
        rank = self.bench.rank(start.base)
        fresh = begun(policy, start, number, free, memory, rank=rank)
        needed = max(policy.minimum, policy.cohort, fresh.rules.needed(len(chosen)))
        if len(chosen) < needed:
            self._too_few(order, number, len(chosen), needed, absent)
            return False
        planned, _ = c.step(fresh, c.Fleet(self.world.clock(), chosen))
        assert planned.plan is not None
        quorum = fresh.rules.needed(len(chosen))
        try:
            row = self.registry.rounds.open(
                planned.plan,
                chosen,
                rule=rule_record(policy, held.version, quorum),
                absent=absent,
                actor=order.actor if order else ACTOR,
            )
        except InputError as error:  # one of them was quarantined meanwhile, say
            self._wait_for(order, error.message)
            return False
        values = {"attempt": attempt, "plan": planned.plan.id, "devices": list(chosen)}
        reasons = {name: each.reason for name, each in absent.items()}
        self.world.say("round.opened", round=number, **values, absent=reasons)
        self.desk.finish(order, {"round": number, "attempt": attempt})
        collecting, _ = c.step(planned, c.Pushed(row.opened.at_s))
        self._conduct(row, collecting)
        return True

    def _conduct(self, row: RoundRow, state: c.State) -> None:
        """Collect a round's answers and close it."""
        self._doing = {"phase": "collecting", "round": row.round, "attempt": row.attempt}
        self._beat(anyway=True)
        collection = Collection(
            state, self.asking, self.roster, self.registry, self.world, self._look
        )
        state, effects = collection.run()
        publish = next((each for each in effects if isinstance(each, c.Publish)), None)
        if publish is not None:
            self._close(collection, publish)
        elif self.desk.abort is not None:
            order, self.desk.abort = self.desk.abort, None
            why = f"aborted by {order.actor}: {order.args['reason']}"
            detail = "the round was aborted"
            silent = [
                c.Refusal(device, Reason.no_reply, detail) for device in sorted(state.unanswered)
            ]
            self._abandon(collection, row.round, why, silent)
            self.desk.finish(order, {"round": row.round})

    def _close(self, collection: Collection, publish: c.Publish) -> None:
        record, release = publish.record, publish.release
        if release is None:
            self._abandon(collection, record.round, record.reason, record.refused)
            return
        policy, current = self.registry.policy.newest(), self.registry.releases.current()
        # Whoever moved the fleet while the round was open meant it to stay there.
        unmoved = current is not None and current.number == record.plan.release
        promote = unmoved and (policy is None or policy.policy.auto_promote)
        try:
            self.registry.rounds.release(
                record.round,
                release,
                memory=record.memory,
                refused=[collection.row_of(each) for each in record.refused],
                signature=self.world.sign(release) if self.world.sign else None,
                promote=promote,
                traffic=asdict(collection.traffic),
                actor=ACTOR,
            )
        except InputError as error:  # the release that it started from was withdrawn, say
            self._abandon(collection, record.round, error.message, record.refused)
            return
        values = {"digest": release.digest, "accepted": len(record.accepted)}
        values |= {"refused": len(record.refused), "promoted": promote}
        self.world.say("round.released", round=record.round, release=release.number, **values)
        self._doing = {"phase": "idle", "round": record.round}

    def _abandon(self, collection: Collection, number: int, why: str, refused: Any) -> None:
        rows = [collection.row_of(each) for each in refused]
        traffic = asdict(collection.traffic)
        self.registry.rounds.abandon(number, why=why, refused=rows, traffic=traffic, actor=ACTOR)
        self.world.say("round.abandoned", round=number, why=why, refused=len(rows))
        self._doing = {"phase": "idle", "round": number - 1, "abandoned": why}

    def _look(self) -> bool:
        """Look up from an open round; tell whether to leave it."""
        self._beat()
        self.deliveries.hear()
        self._hear_judges()
        return self.desk.glance() or self._stopping()

    def _wait_for(self, order: Order | None, why: str, step: str = "") -> None:
        """Note what the next round waits for, and the next step; an order for it fails at once."""
        self.desk.fail(order, why, step)
        if self._doing.get("waiting") != why:
            self.world.say("round.waiting", why=why)
        self._doing = {"phase": "idle", "waiting": why} | ({"next": step} if step else {})

    def _too_few(
        self,
        order: Order | None,
        number: int,
        there: int,
        needed: int,
        absent: dict[str, Absence],
    ) -> None:
        first = [f"{d}: {each.reason}" for d, each in list(absent.items())[:SHOWN]]
        gone = any(each.reason == Absent.revoked.value for each in absent.values())
        step = "fleet device list --all" if gone else "fleet device list"
        why = f"round {number} needs {needed} eligible device(s), {there} are"
        if order is not None and self.roster.introducing():
            self.desk.start = order  # nobody is held up by that: there is no round to open
            return
        self._wait_for(order, f"{why} ({', '.join(first)})" if first else why, step)

    def _let_pass(self, seconds: float) -> None:
        self.world.wait(seconds)
        self._beat()

    def _beat(self, *, anyway: bool = False) -> None:
        now = self.world.now()
        if anyway or now - self._beat_at >= BEAT_S:
            self._beat_at = now
            self.registry.observations.beat(
                pid=self.world.pid,
                version=self.world.version,
                started_at_s=self._started_at_s,
                doing=self._doing,
            )
