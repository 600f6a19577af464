"""A device that goes on learning: what it remembers from round to round, and what it makes of it.

The same code runs in every simulation engine. Of each period it takes the windows that came and
the labels that became known, and gives a :class:`~clients.agent.learner.Learner` for that period's
plan; of each release it makes what the device serves. What it remembers is a frozen record that a
caller keeps where it likes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.agent.learner import Learner, Windows, Workbench
from clients.agent.watching import watched
from fleet.adapt.attach import single_thread
from fleet.adapt.state import CoreState
from fleet.adapt.train import Guard, batches, predict, train
from fleet.continual.calibration import Calibration, calibrated, calibration_of
from fleet.continual.growth import carried
from fleet.continual.guards import Anchor, Distil, fisher_information, joined_fisher
from fleet.continual.options import ContinualOptions
from fleet.continual.personal import held_back, re_expressed
from fleet.continual.pseudo import agreement, choose, worth_it
from fleet.continual.replay import Replay
from fleet.continual.signals import Reference
from fleet.federate.records import Plan
from fleet.measure.f1 import confusion
from fleet.seeds import generator

__all__ = ["ContinualDevice", "DeviceMemory", "Labelled"]

# Windows that the Fisher information of a release is estimated on, one backward pass each.
FISHER_WINDOWS = 32
ALARMS_KEPT = 64
# Windows per forward pass where nothing is trained.
PREDICT_BATCH = 256
# With as many windows as this, the statistics of a device count for half.
PRIOR_WINDOWS = 16


@dataclass(frozen=True, eq=False)
class Labelled:
    """Windows whose labels are known.

    Args:
        x: Normalised, float32 ``(n, channels, window)``.
        y: int64 ``(n,)``.
        ids: Stable and distinct on the device, int64 ``(n,)``.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Labelled:
        """Return some of the windows, by mask or index."""
        return Labelled(self.x[rows], self.y[rows], self.ids[rows])


@dataclass(frozen=True, eq=False)
class DeviceMemory:
    """What a device keeps from period to period.

    Args:
        replay: Its buffer.
        personal: Its private core; None before the first.
        personal_serves: Whether the private core is served: it was better on windows held back.
        fisher: Fisher information so far; None without one.
        calibration: Its own batch-norm statistics; None for the fleet's.
        detector: State of its drift detector; None before it has watched.
        alarms: Periods in which the detector raised an alarm, the last :data:`ALARMS_KEPT`.
        probe: Windows set aside to judge releases on; None before the first.
    """

    replay: Replay
    personal: CoreState | None = None
    personal_serves: bool = True
    fisher: CoreState | None = None
    calibration: Calibration | None = None
    detector: Mapping[str, Any] | None = None
    alarms: tuple[int, ...] = ()
    probe: Labelled | None = None


@dataclass(eq=False)
class ContinualDevice:
    """One device of a fleet over many periods.

    Args:
        name: Of the device.
        bench: What all devices of the base share.
        options: What it does beside plain training.
        memory: What it remembers; replaced, never changed.
        seed: Root of its choices.
    """

    name: str
    bench: Workbench
    options: ContinualOptions
    memory: DeviceMemory
    seed: int
    pseudo_labels: int = field(default=0, init=False)
    _own: tuple[Calibration | None, Workbench] | None = field(default=None, init=False)

    def see(self, x: NDArray[np.float32]) -> None:
        """Take the statistics of the last windows, labelled or not, ``(n, channels, window)``."""
        if self.options.calibrate == "none" or len(x) < 2:
            return
        recent = x[-self.options.calibrate_windows :]
        trust = len(recent) / (len(recent) + PRIOR_WINDOWS)
        found = calibration_of(self.bench.base, recent, trust=trust)
        self.memory = replace(self.memory, calibration=found)

    def watch(
        self, x: NDArray[np.float32], period: int, network: nn.Module, reference: Reference
    ) -> int:
        """Show a period's windows to the drift detector.

        Args:
            x: Windows ``(n, channels, window)`` in time order.
            period: Which period.
            network: The first base's folded network.
            reference: Of that network.

        Returns:
            How many alarms it raised.
        """
        state, alarms = watched(self.memory.detector, network, reference, x)
        kept = (*self.memory.alarms, period)[-ALARMS_KEPT:] if alarms else self.memory.alarms
        self.memory = replace(self.memory, detector=state, alarms=kept)
        return alarms

    def called(self, period: int, first: int) -> bool:
        """Tell whether a device takes part in a period's round of its own accord.

        Args:
            period: The period.
            first: The first one in which it could.
        """
        if self.options.trigger == "always":
            return True
        since = (period - at for at in (first, *self.memory.alarms))
        return any(0 <= age < self.options.trigger_rounds for age in since)

    def learner(
        self,
        fresh: Labelled,
        unlabelled: NDArray[np.float32],
        release: CoreState,
        round_number: int,
        test: Labelled,
    ) -> Learner:
        """Return the learner of a round: fresh windows, some replayed, and pseudo-labelled ones.

        Args:
            fresh: Windows whose labels became known since the last round.
            unlabelled: Windows without a label ``(m, channels, window)``.
            release: Core state that the round starts from.
            round_number: The round.
            test: What the release will be judged on.
        """
        parts = self._mixed(fresh, round_number)
        parts += self._pseudo_labelled(fresh, unlabelled, release)
        x = np.concatenate([part[0] for part in parts])
        y = np.concatenate([part[1] for part in parts])
        windows = Windows(x, y, test.x, test.y)
        guards = self._guards if self.options.alone else None
        reason = "" if len(fresh) else "no new labelled windows"
        return Learner(
            self.name, self.bench.base, windows, reason=reason, bench=self.own_bench, guards=guards
        )

    def remember(self, fresh: Labelled, period: int) -> None:
        """Put the fresh windows into the replay buffer, after the round that they were fresh in."""
        if self.options.replay_bytes and len(fresh):
            replay, _ = self.memory.replay.add(fresh.x, fresh.y, fresh.ids.tolist(), period)
            self.memory = replace(self.memory, replay=replay)

    def follow(self, plan: Plan | None, release: CoreState, fresh: Labelled) -> None:
        """Train what is private to the device on top of a new release.

        Args:
            plan: The round's plan, whose optimiser and rate it follows; None where there was none.
            release: Core state of the release that is served now.
            fresh: The windows that were fresh in its round.
        """
        if plan is None or not len(fresh):
            return
        if self.options.ewc:
            self._weigh_entries(plan, release, fresh)
        if self.options.personal:
            self._personalise(plan, release, fresh)

    def rebase(self, bench: Workbench, method: str) -> None:
        """Go on with another base: a grown one, or one with other frames."""
        old, memory = self.bench.base, self.memory
        layout = bench.layout(method)
        self.bench, self._own = bench, None
        if memory.personal is None:
            self.memory = replace(memory, fisher=None)
            return
        same = old.frame_digest == bench.base.frame_digest
        personal = (
            carried(memory.personal, layout)
            if same
            else re_expressed(memory.personal, old, bench.base, layout)
        )
        self.memory = replace(memory, personal=personal, fisher=None)

    @property
    def own_bench(self) -> Workbench:
        """The workbench of this device's own calibration."""
        calibration = self.memory.calibration
        if calibration is None:
            return self.bench
        if self._own is None or self._own[0] is not calibration:
            network = calibrated(self.bench.network, calibration)
            self._own = (calibration, Workbench(self.bench.base, network))
        return self._own[1]

    def serves(self, release: CoreState, *, personal: bool = True) -> nn.Module:
        """Return the dense network that the device serves under a release."""
        own = self.memory.personal
        if personal and own is not None and self.memory.personal_serves:
            release = release + own
        return self.own_bench.served(release)

    def judge(
        self, release: CoreState, test: Labelled, *, classes: int = 0, personal: bool = True
    ) -> NDArray[np.int64]:
        """Return confusion counts ``(classes, classes)`` of what it serves; 0 for the base's."""
        with single_thread():
            network = self.serves(release, personal=personal)
            predicted = predict(network, torch.from_numpy(test.x))
        return confusion(test.y, predicted, classes or len(self.bench.base.record.labels))

    def _mixed(
        self, fresh: Labelled, round_number: int
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Return the labelled windows of a round: fresh ones first, or all alike."""
        if self.options.replay_mix == "fresh-first" or not len(fresh):
            return [(fresh.x, fresh.y), *self._replayed(len(fresh), round_number)]
        known = self._known(fresh)
        wanted = min(len(known), round((1 + self.options.replay_share) * len(fresh)))
        rng = generator(self.seed, round_number, self.name, "continual/mix")
        rows = np.sort(rng.choice(len(known), wanted, replace=False)).astype(np.int64)
        chosen = known.take(rows)
        return [(chosen.x, chosen.y)]

    def _replayed(
        self, fresh: int, round_number: int
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        if not self.options.replay_bytes or not fresh:
            return []
        x, y = self.memory.replay.windows()
        wanted = min(len(y), round(self.options.replay_share * fresh))
        if not wanted:
            return []
        rng = generator(self.seed, round_number, self.name, "continual/replay")
        rows = np.sort(rng.choice(len(y), wanted, replace=False))
        return [(x[rows], y[rows])]

    def _pseudo_labelled(
        self, fresh: Labelled, unlabelled: NDArray[np.float32], release: CoreState
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        self.pseudo_labels = 0
        options = self.options
        if not options.pseudo or not len(fresh) or not len(unlabelled):
            return []
        network = self.serves(release, personal=False)
        known, threshold = probabilities(network, fresh.x), options.pseudo_threshold
        right, confident = agreement(known, fresh.y, threshold)
        if not worth_it(right, confident, bound=options.pseudo_precision):
            return []
        total = max(1, round(options.pseudo * len(fresh)))
        found = probabilities(network, unlabelled)
        rows, labels = choose(
            found, threshold=threshold, per_class=-(-total // found.shape[1]), total=total
        )
        self.pseudo_labels = len(rows)
        return [(unlabelled[rows], labels)] if len(rows) else []

    def _guards(self, learner: Learner, plan: Plan, release: CoreState) -> Sequence[Guard]:
        options, guards = self.options, list[Guard]()
        if options.anchor:
            guards.append(Anchor(release, options.anchor))
        if options.ewc and self.memory.fisher is not None:
            guards.append(Anchor(release, options.ewc, self.memory.fisher))
        if options.distil:
            logits = _logits(learner.bench.served(release), learner.windows.train_x)
            guards.append(Distil(logits, options.distil))
        return guards

    def _weigh_entries(self, plan: Plan, release: CoreState, fresh: Labelled) -> None:
        with single_thread():
            attached = self.own_bench.attach(plan.method, release, torch.float32)
            now = fisher_information(
                attached,
                torch.from_numpy(fresh.x),
                torch.from_numpy(fresh.y),
                windows=FISHER_WINDOWS,
            )
        fisher = joined_fisher(self.memory.fisher, now, self.options.ewc_keep)
        self.memory = replace(self.memory, fisher=fisher)

    def _personalise(self, plan: Plan, release: CoreState, fresh: Labelled) -> None:
        """Train the private core on the device's windows; serve it only if it helps."""
        options = self.options
        known = self._known(fresh)
        judging = held_back(known.ids)
        training = self._some(known.take(~judging), plan.round)
        if not len(training):
            return
        before = self.memory.personal
        start = release if before is None else release + before
        own = self.own_bench
        with single_thread():
            attached = own.attach(plan.method, start, torch.float32)
            train(
                attached,
                torch.from_numpy(training.x),
                torch.from_numpy(training.y),
                batches(
                    len(training),
                    batch=plan.batch,
                    epochs=options.personal_epochs,
                    generator=generator(self.seed, plan.round, self.name, "continual/personal"),
                ),
                optimiser=plan.optimiser,
                learning_rate=plan.learning_rate * options.personal_rate,
                momentum=plan.momentum,
                guards=[Anchor(release, options.personal_anchor)],
            )
            personal = attached.state() - release
            check = known.take(judging)
            alone = _loss(own.served(release), check)
            helped = _loss(own.served(release + personal), check) < alone if len(check) else True
        self.memory = replace(self.memory, personal=personal, personal_serves=helped)

    def _some(self, known: Labelled, round_number: int) -> Labelled:
        """Return a sample of windows that keeps the cost of a round bounded."""
        most = self.options.personal_windows
        if len(known) <= most:
            return known
        rng = generator(self.seed, round_number, self.name, "continual/personal/windows")
        return known.take(np.sort(rng.choice(len(known), most, replace=False)).astype(np.int64))

    def _known(self, fresh: Labelled) -> Labelled:
        """Return the fresh windows and those of the replay buffer."""
        replay = self.memory.replay
        x, y = replay.windows()
        ids = replay.ids
        new = ~np.isin(fresh.ids, ids)
        return Labelled(
            np.concatenate([x, fresh.x[new]]) if len(y) else fresh.x[new],
            np.concatenate([y, fresh.y[new]]),
            np.concatenate([ids, fresh.ids[new]]),
        )


def probabilities(network: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return class probabilities ``(n, classes)`` float64 of windows."""
    return np.asarray(torch.softmax(_logits(network, x).double(), dim=1).numpy())


def _logits(network: nn.Module, x: NDArray[np.float32]) -> torch.Tensor:
    with torch.no_grad(), single_thread():
        parts = [network(part) for part in torch.split(torch.from_numpy(x), PREDICT_BATCH)]
    return torch.cat(parts)


def _loss(network: nn.Module, known: Labelled) -> float:
    if not len(known):
        return 0.0
    logits = _logits(network, known.x)
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(known.y)))
