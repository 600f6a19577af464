"""A device that goes on learning: what it remembers from round to round, and what it makes of it.

The same code runs in every simulation engine. Of each period it takes the windows that came and
the labels that became known, and gives a :class:`~clients.agent.learner.Learner` for that period's
plan; of each release it makes what the device serves. What it remembers is a frozen record that a
caller keeps where it likes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.agent.continual_labels import pseudo_labelled
from clients.agent.continual_memory import ALARMS_KEPT, DeviceMemory, Labelled, known_of
from clients.agent.continual_private import PrivateCore, PrivateWork, private_work, tried_alone
from clients.agent.guarding import guards_for, weighed
from clients.agent.learner import Learner, Windows, Workbench
from clients.agent.watching import watched
from fleet.adapt.attach import single_thread
from fleet.adapt.state import CoreState
from fleet.adapt.train import Guard, predict
from fleet.continual.calibration import Calibration, calibrated, calibration_of, trust_of
from fleet.continual.growth import carried
from fleet.continual.guards import joined_fisher
from fleet.continual.options import ContinualOptions
from fleet.continual.personal import re_expressed
from fleet.continual.signals import Reference
from fleet.federate.records import Plan
from fleet.measure.f1 import confusion
from fleet.seeds import generator

__all__ = ["ContinualDevice", "DeviceMemory", "Labelled"]


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
        found = calibration_of(self.bench.base, recent, trust=trust_of(len(recent)))
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
        if self.options.trigger == "every":
            return (period - first) % self.options.trigger_every == 0
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
        guards = self._guards if self.options.guarded else None
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
        work = self.begin_private(plan, release, fresh)
        if plan is not None and work is not None:
            found = tried_alone(plan, release, work)
            if isinstance(found, PrivateCore):  # else it keeps the core it had
                self.adopt(found)

    def begin_private(
        self, plan: Plan | None, release: CoreState, fresh: Labelled
    ) -> PrivateWork | None:
        """Do what :meth:`follow` does but for the private core; return its work, if there is any.

        Whoever does that work hands what comes of it to :meth:`adopt`.
        """
        if plan is None or not len(fresh):
            return None
        if self.options.ewc:
            self._weigh_entries(plan, release, fresh)
        if not self.options.personal:
            return None
        return private_work(
            *(self.own_bench, plan, self.options, self.memory, fresh),
            device=self.name,
            seed=self.seed,
        )

    def adopt(self, found: PrivateCore) -> None:
        """Keep a private core; it is served only if it helps."""
        self.memory = replace(self.memory, personal=found.core, personal_serves=found.helps)

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
            self._own = (calibration, Workbench(self.bench.base, network, calibration.maps))
        return self._own[1]

    @property
    def serves_private(self) -> bool:
        """Whether the device has a private core that helps, and so is served."""
        return self.memory.personal is not None and self.memory.personal_serves

    def serves(self, release: CoreState, *, personal: bool = True) -> nn.Module:
        """Return the dense network that the device serves under a release."""
        own = self.memory.personal
        if personal and own is not None and self.serves_private:
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
        known = known_of(self.memory, fresh)
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
        if not self.options.pseudo:
            return []
        network = self.serves(release, personal=False)
        x, y = pseudo_labelled(network, self.options, fresh, unlabelled)
        self.pseudo_labels = len(y)
        return [(x, y)] if len(y) else []

    def _guards(self, learner: Learner, plan: Plan, release: CoreState) -> Sequence[Guard]:
        fisher = self.memory.fisher
        return guards_for(self.options, learner, plan, release, fisher, beforehand=True)

    def _weigh_entries(self, plan: Plan, release: CoreState, fresh: Labelled) -> None:
        windows = Windows(fresh.x, fresh.y, fresh.x[:0], fresh.y[:0])
        now = weighed(self.own_bench, plan.method, release, windows)
        fisher = joined_fisher(self.memory.fisher, now, self.options.ewc_keep)
        self.memory = replace(self.memory, fisher=fisher)
