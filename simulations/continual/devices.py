"""The devices of a continual run: who is there, what they saw, and what they serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clients.agent.continual import ContinualDevice, DeviceMemory, Labelled
from clients.agent.continual_memory import arrival_ids
from clients.agent.continual_private import PrivateWork
from clients.agent.learner import Learner, Workbench
from clients.agent.probing import for_probe, set_aside
from fleet.adapt.base import Base
from fleet.adapt.state import CoreState
from fleet.continual.calibration import calibrated, neutral
from fleet.continual.options import ContinualOptions
from fleet.continual.replay import Replay
from fleet.continual.signals import Reference
from fleet.continual.timeline import Timeline
from fleet.errors import RoundError
from fleet.federate.records import Plan
from fleet.har.normalise import Normalisation
from fleet.peft.registry import find
from simulations.continual.chain import Place
from simulations.continual.private import OneByOne, PrivateTraining

__all__ = ["Devices", "Eye", "Seen"]

# A device that was away for longer trains on the last so many periods' labels.
LARGEST_BACKLOG = 8


@dataclass(frozen=True, eq=False)
class Seen:
    """What one device has for a round.

    Args:
        fresh: Windows whose labels became known since its last round.
        unlabelled: The period's windows whose labels are not known.
    """

    fresh: Labelled
    unlabelled: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Eye:
    """What drift detectors look with: the first base, and what its features are like.

    Args:
        network: Its folded network.
        reference: Of source people.
    """

    network: nn.Module
    reference: Reference


@dataclass(eq=False)
class Devices:
    """All devices of a run, by their number in the timeline.

    Args:
        timeline: Who is there, and what they see.
        normalisation: The base's.
        options: What each does beside plain training.
        seed: Root of their choices.
        eye: What drift detectors look with; None where nobody watches.
        probing: Whether they set windows aside to judge releases on.
        private: What trains their private cores.

    Attributes:
        diverged: Names of those whose private core did in the last round that there was.
    """

    timeline: Timeline
    normalisation: Normalisation
    options: ContinualOptions
    seed: int
    eye: Eye | None = None
    probing: bool = False
    private: PrivateTraining = field(default_factory=OneByOne)
    each: dict[int, ContinualDevice] = field(default_factory=dict)
    served: dict[int, CoreState] = field(default_factory=dict)
    places: dict[int, Place] = field(default_factory=dict)
    trained_at: dict[int, int] = field(default_factory=dict)
    learners: dict[int, Learner] = field(default_factory=dict)
    seen: dict[int, Seen] = field(default_factory=dict)
    diverged: list[str] = field(default_factory=list)
    _shared: tuple[Workbench, Workbench] | None = field(default=None, init=False)

    def present(self, period: int) -> list[int]:
        """Return the devices that are part of the fleet in a period."""
        return [d for d in range(len(self.timeline)) if self.timeline.present(d, period)]

    def online(self, period: int) -> list[int]:
        """Return those of them that can be reached."""
        return [d for d in self.present(period) if self.timeline.online(d, period)]

    def serving(self, period: int) -> list[int]:
        """Return those that have ever been reached, and so serve something."""
        return [d for d in self.present(period) if d in self.served]

    def device(self, number: int, bench: Workbench) -> ContinualDevice:
        """Return a device, made when it is first met."""
        if number not in self.each:
            options = self.options
            name, budget = self.timeline.name(number), options.replay_bytes
            replay = Replay.empty(budget, options.replay_encoding, seed=self.seed, device=name)
            memory = DeviceMemory(replay)
            self.each[number] = ContinualDevice(name, bench, options, memory, self.seed)
        return self.each[number]

    def catch_up(
        self, number: int, bench: Workbench, method: str, state: CoreState, place: Place
    ) -> None:
        """Bring a device to a release, whatever it held before."""
        device = self.device(number, bench)
        if device.bench is not bench:
            device.rebase(bench, method)
        self.served[number], self.places[number] = state, place

    def restore(
        self, number: int, bench: Workbench, memory: DeviceMemory, state: CoreState, place: Place
    ) -> None:
        """Put a device back to where an earlier part of the run left it."""
        self.device(number, bench).memory = memory
        self.served[number], self.places[number] = state, place

    def notice(self, number: int, period: int) -> int:
        """Let a device take in a period's windows as they came, without labels.

        Returns:
            Alarms of its drift detector.
        """
        if self.options.calibrate == "none" and self.eye is None:
            return 0
        arrival = self.timeline.arrival(number, period, self.normalisation)
        self.each[number].see(arrival.x)
        if self.eye is None:
            return 0
        return self.each[number].watch(arrival.x, period, self.eye.network, self.eye.reference)

    def ready(self, number: int, period: int) -> bool:
        """Tell whether a device has something to train on, and cause to."""
        first = next(p for p in range(period + 1) if self.timeline.present(number, p))
        called = self.each[number].called(period, first)
        return called and len(self.look(number, period).fresh) > 0

    def own_state(self, number: int, release: CoreState) -> CoreState:
        """Return what a device serves: a release and what is private to it."""
        own = self.each[number].memory.personal
        return release if own is None else release + own

    def keep_private(self, number: int, personal: CoreState) -> None:
        """Keep what a device has learned for itself alone."""
        device = self.each[number]
        device.memory = replace(device.memory, personal=personal)

    def look(self, number: int, period: int) -> Seen:
        """Return what a device has for the round of a period; made once a period."""
        if number not in self.seen:
            seen = self._look(number, period)
            if self.probing:
                device = self.each[number]
                device.memory, fresh = set_aside(device.memory, seen.fresh)
                seen = replace(seen, fresh=fresh)
            self.seen[number] = seen
        return self.seen[number]

    def probe_counts(self, number: int, state: CoreState) -> NDArray[np.int64]:
        """Return a device's confusion counts on its probe set under a release, nothing private."""
        device, classes = self.each[number], len(self.timeline.labels)
        if device.memory.probe is None:
            return np.zeros((classes, classes), np.int64)
        return device.judge(state, device.memory.probe, classes=classes, personal=False)

    def test(self, number: int, period: int) -> Labelled:
        """Return a period's held-out windows of a device."""
        held = self.timeline.held_out(number, period, self.normalisation)
        ids = np.arange(len(held.y), dtype=np.int64)
        return Labelled(held.x, held.y, ids)

    def prepare(self, number: int, period: int, state: CoreState) -> Learner:
        """Make the learner of a device for a period's round."""
        seen = self.look(number, period)
        device = self.each[number]
        none = seen.fresh.take(np.zeros(0, np.int64))
        learner = device.learner(seen.fresh, seen.unlabelled, state, period + 1, none)
        self.learners[number] = learner
        return learner

    def close(
        self, period: int, trained: Sequence[int], plan: Plan | None, state: CoreState
    ) -> None:
        """End a period: devices that trained remember their windows and follow the release."""
        if plan is not None:
            self._follow(trained, plan, state)
        for number in trained:
            self.each[number].remember(self.seen[number].fresh, period)
            self.trained_at[number] = period
        self.learners.clear()
        self.seen.clear()

    def trained_size(self, base: Base, method: str) -> int:
        """Return the entries that a device trains and sends; 0 where nothing is trained."""
        return Workbench(base).layout(method).size if method else 0

    def shared(self, bench: Workbench, method: str) -> Workbench:
        """Return what devices train on together: with places for what is each one's own.

        It is not what any of them serves; :class:`~.judging.Judge` asks each device for that.

        Args:
            bench: Of the base.
            method: What is trained; one that trains whole kernels has no such places.
        """
        if self.options.calibrate == "none" or not find(method).lean:
            return bench
        if self._shared is None or self._shared[0] is not bench:
            maps = neutral(bench.base)
            own = Workbench(bench.base, calibrated(bench.network, maps), maps.maps)
            self._shared = (bench, own)
        return self._shared[1]

    def memories(self) -> Mapping[int, DeviceMemory]:
        """Return what every device remembers."""
        return {number: device.memory for number, device in sorted(self.each.items())}

    def _follow(self, trained: Sequence[int], plan: Plan, state: CoreState) -> None:
        """Train what is private to devices: together where they have the same network."""
        self.diverged = []
        together: list[tuple[ContinualDevice, PrivateWork]] = []
        for number in trained:
            device = self.each[number]
            work = device.begin_private(plan, state, self.seen[number].fresh)
            if work is not None:
                together.append((device, work))
        if together:
            # Who trained is on the release of this round, and so on one base.
            bench = self.shared(together[0][0].bench, plan.method)
            found = self.private.train(bench, plan, state, [work for _, work in together])
            for (device, _), core in zip(together, found, strict=True):
                if isinstance(core, RoundError):  # it keeps the core it had
                    self.diverged.append(device.name)
                else:
                    device.adopt(core)

    def _look(self, number: int, period: int) -> Seen:
        since = max(self.trained_at.get(number, -1), period - LARGEST_BACKLOG)
        first = max(0, since + 1 - self.timeline.scenario.label_delay)
        x, y, ids, unlabelled = [], [], [], None
        for arrived in range(first, period + 1):
            if not self.timeline.present(number, arrived):
                continue
            known_at = self.timeline.known_at(number, arrived)
            now = (since < known_at) & (known_at <= period)
            # Windows are made of recordings, labels become known of a table: look there first.
            if arrived < period and not now.any():
                continue
            arrival = self.timeline.arrival(number, arrived, self.normalisation)
            sources = self.timeline.rows(number, arrived)
            x.append(arrival.x[now])
            y.append(arrival.y[now])
            ids.append(arrival_ids(sources, arrived)[now])
            if arrived == period:
                unknown = known_at > period
                if self.probing:
                    unknown &= ~for_probe(self.each[number].memory, sources)
                unlabelled = arrival.x[unknown]
        empty = np.zeros((0, *self.timeline.shape), np.float32)
        fresh = Labelled(
            np.concatenate([empty, *x]),
            np.concatenate([np.zeros(0, np.int64), *y]),
            np.concatenate([np.zeros(0, np.int64), *ids]),
        )
        return Seen(fresh, empty if unlabelled is None else unlabelled)
