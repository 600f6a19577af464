"""A continual run: period by period, what is served is judged, then learned from.

Rounds go through the coordinator's own state machine, its admission and its exact aggregation. What
a device serves in a period is judged on that period's held-out windows before anything of the
period is learned.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from clients.agent.learner import Learner, Workbench
from fleet.adapt.attach import single_thread
from fleet.adapt.base import Base
from fleet.config import RunConfig
from fleet.federate.releases import catch_up
from fleet.federate.rule import MEAN, read_rule
from fleet.peft.registry import find
from server import coordinator as c
from server.app import task_of
from server.messages import Traffic
from simulations.cohort.fleet import CohortFleet
from simulations.continual.chain import FIRST, Chain
from simulations.continual.devices import Devices
from simulations.continual.fleet import period_fleet
from simulations.continual.judging import Judge
from simulations.continual.keeping import ContinualFolder
from simulations.continual.renewal import Renewal
from simulations.continual.rounds import Outcome, run_round
from simulations.continual.strategies import Strategy
from simulations.continual.trial import tried
from simulations.engines import Engine
from simulations.progress import Progress

__all__ = ["Continual", "run_periods"]


@dataclass(frozen=True, eq=False)
class Continual:
    """One strategy over one scenario.

    Args:
        folder: Where it is kept.
        config: Data, optimiser, rule and seed; ``method`` is the strategy's.
        strategy: What the fleet does.
        devices: The devices, at their start.
        base: What all start from.
        rate: Learning rate.
        engine: ``cohort`` or ``loop``.
        workers: Threads that train; 0 for one per core.
        renew: Makes the frames of a base whose kernels have moved; None where none are made.
    """

    folder: Path
    config: RunConfig
    strategy: Strategy
    devices: Devices
    base: Base
    rate: float
    engine: Engine = Engine.cohort
    workers: int = 0
    renew: Callable[[Base], Base] | None = None


def run_periods(run: Continual, progress: Progress) -> list[dict[str, Any]]:
    """Run the periods that are left; return the records of all, in order.

    Raises:
        StorageError: When what an earlier part kept cannot be read, or nothing can be written.
    """
    keep = ContinualFolder(run.folder)
    done = keep.periods()
    going = _Going(run)
    if done:
        going.resume(done[-1], keep)
    periods = run.devices.timeline.scenario.periods
    progress.stage(run.strategy.name, max(1, periods - len(done)))
    fleet = period_fleet(going.engine, run.workers, going.learner, going.bench)
    with closing(fleet), single_thread():
        for period in range(len(done), periods):
            record = going.period(period, fleet)
            keep.keep(period, record, run.devices.memories())
            f1 = "n/a" if record["macro_f1"] is None else f"{record['macro_f1']:.3f}"
            progress.advance(f"period {period + 1}/{periods} · F1 {f1}")
    return keep.periods()


class _Going:
    """A run between two of its periods."""

    def __init__(self, run: Continual) -> None:
        self.run, self.devices = run, run.devices
        self.chain = Chain(run.folder, run.base, run.strategy.method or "core")
        self.judge = Judge(run.devices, self.chain)
        self.renewal = Renewal(run.strategy, run.devices)
        # What a period's record says beside the rest: of a candidate, or why there was no round.
        self.said: dict[str, Any] = {}

    @property
    def engine(self) -> Engine:
        """What trains: devices that take a second pass at each step train one by one."""
        alone = self.run.strategy.options.alone and self.run.engine is Engine.cohort
        return Engine.loop if alone else self.run.engine

    def learner(self, number: int) -> Learner:
        """Return a device's learner in the present period."""
        return self.devices.learners[number]

    def bench(self) -> Workbench:
        """Return what the devices of a round share."""
        return self.devices.shared(self.chain.bench, self.chain.method)

    def resume(self, record: dict[str, Any], keep: ContinualFolder) -> None:
        """Go on behind a whole period."""
        chain, number, _ = record["release"]
        self.chain.go_to((chain, number), record.get("issued", 0))
        self.renewal.resume(record)
        for device, memory in keep.memories(record).items():
            place = record["serving"][str(device)]
            bench = self.chain.bench_of(place[0])
            state = self.chain.state_at((place[0], place[1]))
            self.devices.restore(device, bench, memory, state, (place[0], place[1]))
        self.devices.trained_at.update({int(n): at for n, at in record["trained_at"].items()})

    def period(self, period: int, fleet: CohortFleet) -> dict[str, Any]:
        """Judge one period and learn from it; return its record."""
        started, devices = time.process_time(), self.devices
        timeline = devices.timeline
        self.chain.grow(timeline.labels[: timeline.classes_at(period)], self.run.config.seed)
        online = devices.online(period)
        sent = self._catch_up(online)
        served = self.judge.period(period)
        if period == 0:
            served["tasks_at_start"] = self.judge.tasks()
        alarms = {n: devices.notice(n, period) for n in devices.serving(period)}
        self.said = {}
        trained, labels, traffic = self._learn(period, online, fleet)
        self.renewal.renew(self.chain, self.run.renew)
        traffic.bytes_down += sent + self._catch_up(online)
        served |= self.judge.after(period)
        return {
            "period": period,
            "release": [*self.chain.place, self.chain.release.digest],
            "issued": self.chain.issued,
            "classes": timeline.classes_at(period),
            "present": len(devices.present(period)),
            "online": len(online),
            "trained": trained,
            "labels": labels,
            "alarms": [devices.each[n].name for n, raised in alarms.items() if raised],
            "traffic": asdict(traffic),
            "serving": {str(n): list(at) for n, at in sorted(devices.places.items())},
            "trained_at": {str(n): at for n, at in sorted(devices.trained_at.items())},
            **self.said,
            **self.renewal.record(),
            **served,
            "cpu_seconds": round(time.process_time() - started, 3),
        }

    def _catch_up(self, online: list[int]) -> int:
        """Bring devices to the release; return the bytes of it and of new frames that this takes.

        A device comes with the first base, whose release says nothing more.
        """
        place, bench, sent = self.chain.place, self.chain.bench, 0
        state, size = self.chain.release.state, catch_up(self.chain.release).array.nbytes
        for number in online:
            before = self.devices.places.get(number, FIRST)
            sent += sum(self.chain.bytes_to(n) for n in range(before[0] + 1, place[0] + 1))
            sent += size if before != place else 0
            self.devices.catch_up(number, bench, self.chain.method, state, place)
        return sent

    def _learn(
        self, period: int, online: list[int], fleet: CohortFleet
    ) -> tuple[int, int, Traffic]:
        """Run a period's round; return how many trained, on how many labels, and what was sent."""
        strategy, devices = self.run.strategy, self.devices
        ready = [n for n in online if devices.ready(n, period)] if strategy.method else []
        trained: list[int] = []
        plan, traffic = None, Traffic()
        if ready and not strategy.shares:
            self._alone(period, ready)
            trained = ready
        elif ready and self._enough(len(ready)):
            for number in ready:
                devices.prepare(number, period, self.chain.release.state)
            by_name = {devices.each[n].name: n for n in ready}
            outcome = run_round(self._start(period), by_name, fleet)
            plan, traffic = outcome.plan, outcome.traffic
            self._publish(outcome, online)
            trained = [by_name[name] for name in outcome.learned_from]
            if trained:
                self.renewal.measure(trained, period, self.chain.release.state, traffic)
        labels = sum(len(devices.look(n, period).fresh) for n in trained)
        # Whoever was not drawn, or whose update was refused, keeps its labels for the next round.
        devices.close(period, trained, plan, self.chain.release.state)
        if plan is not None and devices.diverged:
            self.said["private_diverged"] = list(devices.diverged)
        return len(trained), labels, traffic

    def _enough(self, ready: int) -> bool:
        """Tell whether a round can open, and say so in the period's record if not."""
        config = self.run.config
        wanted = max(config.cohort, read_rule(config.rule).fewest)
        if ready < wanted:
            self.said["no_round"] = f"{ready} of the {wanted} devices that a round needs were ready"
        return ready >= wanted

    def _alone(self, period: int, ready: list[int]) -> None:
        """Let devices train each on its own: what they learn is all private."""
        release = self.chain.release.state
        start = self._start(period)
        # A plan for each of them, whatever a round of the fleet would need.
        alone = replace(start, rules=replace(start.rules, cohort=0, rule=MEAN))
        _, effects = c.step(alone, c.Fleet(0.0, ("nobody",)))
        push = next(each for each in effects if isinstance(each, c.Push))
        for number in ready:
            learner = self.devices.prepare(number, period, release)
            own = self.devices.own_state(number, release)
            delta, _ = learner.train(push.plan, own)
            self.devices.keep_private(number, own + delta - release)

    def _publish(self, outcome: Outcome, online: list[int]) -> None:
        """Keep a round's release, and go on with it unless it fails its trial."""
        candidate, margin, promoted = outcome.release, self.run.strategy.gate, True
        if candidate is not None and margin is not None:
            before = self.chain.release.state
            promoted, self.said = tried(
                self.devices, online, before, candidate, margin, outcome.traffic
            )
        self.chain.rounds.publish(outcome.record, candidate, outcome.traffic)
        if candidate is not None:
            self.chain.issued = candidate.number
            if promoted:
                self.chain.release = candidate

    def _start(self, period: int) -> c.State:
        """Return the coordinator's state before a period's round; a period has one try."""
        run, periods = self.run, self.devices.timeline.scenario.periods
        base = self.chain.bench.base
        task = task_of(run.config, base, find(self.chain.method), run.rate)
        rules = c.Rules(
            rounds=periods,
            minimum=1,
            cohort=run.config.cohort,
            quorum=1,
            deadline_s=run.config.deadline_s,
            seed=run.config.seed,
            rule=read_rule(run.config.rule),
        )
        start = c.begin(rules, task, self.chain.release, round_number=period + 1)
        return replace(start, number=self.chain.issued + 1)
