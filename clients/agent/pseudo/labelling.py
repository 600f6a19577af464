"""Which windows without a label join a training, and under which label.

Laws (tests/clients/agent/pseudo): off, the device is one that never had any; what is taken is what
:func:`fleet.continual.pseudo.choose` takes; a training that was killed goes on with the same ones;
who is forgotten is in none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from clients.agent.calibrating.statistics import BATCH_WINDOWS, USUAL_VALUE, Footing
from clients.agent.continual_labels import Guesses, guessed, probabilities
from clients.agent.learner import Windows
from clients.agent.pseudo.kept import Kept, kept_of, put_kept
from clients.agent.pseudo.settings import PseudoLabels
from clients.agent.serving.probe import normalisation_of
from clients.agent.store import Store
from clients.agent.store.following import windows_of
from clients.agent.store.records import Loaded
from clients.link.records import STOPPING
from fleet.adapt.base import BaseRecord
from fleet.adapt.digest import digest_arrays, digest_json
from fleet.adapt.state import CoreState
from fleet.errors import RoundError, StorageError
from fleet.federate.records import Plan

if TYPE_CHECKING:
    from clients.agent.answering.labelled import Labelled
    from clients.agent.answering.world import World
    from clients.agent.config import DeviceConfig

__all__ = ["NOTHING", "SEARCH_SHARE", "Chosen", "Labelling"]

SEARCH_SHARE = 0.5
"""What of the day's seconds that are left they may be looked for; the rest is for training."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Windows that train under a label which nobody gave them.

    Args:
        kept: Which, and for what; None where there are to be none.
        x: Normalised, float32 ``(n, channels, window)``.
        people: Whose they are, and whose held-out windows said whether there may be any.
    """

    kept: Kept | None = None
    x: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    people: frozenset[str] = frozenset()

    @property
    def said(self) -> dict[str, Any]:
        """What the journal has of it: nothing where they are off.

        ``used``; ``looked-at``, windows without a label; ``right`` of ``confident``, those held out
        on which it was sure; and ``none``, why none are used.
        """
        return {} if self.kept is None else {"pseudo-labels": dict(self.kept.said)}

    def named(self, windows: str) -> str:
        """Return the digest of the labelled windows that are trained on, and of these."""
        if self.kept is None or not self.kept.ids:
            return windows
        ids, labels = (np.array(one, np.int64) for one in (self.kept.ids, self.kept.labels))
        return digest_json([windows, digest_arrays({"pseudo": ids, "labels": labels})])

    def joined(self, windows: Windows) -> Windows:
        """Return the windows that train with these behind the labelled ones."""
        if self.kept is None or not self.kept.ids:
            return windows
        y = np.array(self.kept.labels, np.int64)
        return Windows(
            np.concatenate([windows.train_x, self.x]),
            np.concatenate([windows.train_y, y]),
            windows.test_x,
            windows.test_y,
        )


NOTHING = Chosen()


class _OverBudget(Exception):
    """What the day leaves for them is used up."""


@dataclass(frozen=True)
class _Limits:
    """When to look no further, monotonic seconds.

    Args:
        until: The plan's time is over, and there is nothing to train.
        budget: What the day leaves for them is used up, and they are done without.
    """

    until: float
    budget: float


class Labelling:
    """Finds them for one training after the other.

    Args:
        store: Windows, and what the last training took.
        config: Reads the device's configuration, which its owner may change at any time.
        world: Its clock, the wish to stop, and who is told.
    """

    def __init__(self, store: Store, config: Callable[[], DeviceConfig], world: World) -> None:
        self._store = store
        self._config = config
        self._world = world

    def begun(self, plan: Plan, found: Labelled, about: BaseRecord) -> Chosen:
        """Return what the killed training of this plan took; nothing where there was none.

        Args:
            plan: What is asked.
            found: The labelled windows that there are now.
            about: Shape and normalisation.
        """
        if not self._config().pseudo_labels.on or self._store.checkpoints.plan() != plan.id:
            return NOTHING
        try:
            kept = kept_of(self._store)
        except StorageError as error:
            if error.code != "pseudo-labels-damaged":
                raise
            self._world.say("pseudo-labels.dropped", plan=plan.id, reason=error.code)
            return NOTHING
        if kept is None or (kept.plan, kept.labelled) != (plan.id, found.digest):
            return NOTHING
        shape = (about.model.channels, about.model.window)
        windows = windows_of(self._store.database, shape, kept.ids)
        # A label of a class that the base lacks is one that the labelled windows do not show.
        if tuple(windows.ids) != kept.ids or any(label is not None for label in windows.labels):
            return NOTHING
        people = frozenset((*windows.people, *kept.judges))
        return Chosen(kept, _normalised(about, windows.x), people)

    def take(
        self,
        plan: Plan,
        state: CoreState,
        found: Labelled,
        footing: Footing,
        begun: Chosen = NOTHING,
        until: float = math.inf,
        budget_s: float = math.inf,
    ) -> Chosen:
        """Return what a training takes: what it began with, else the newest.

        Args:
            plan: What is asked.
            state: The release that it starts from, whose network labels.
            found: The labelled windows: those held out say how far it may be trusted.
            footing: What the device computes on.
            begun: See :meth:`begun`.
            until: Monotonic seconds at which the plan's time is over.
            budget_s: Seconds that the policy leaves for today; where :data:`SEARCH_SHARE` of them
                is used up there are none (``over-budget``), and the training begins without.

        Raises:
            RoundError: ``agent-stopping`` or ``over-time``.
        """
        options = self._config().pseudo_labels
        if not (options.on and len(found.windows.train_y)):
            return NOTHING
        if begun.kept is not None and begun.kept.statistics == footing.digest:
            return begun
        limits = _Limits(until, self._world.monotonic() + SEARCH_SHARE * budget_s)
        windows, x = self._unlabelled(footing.bench.base.record, options)
        # Where nothing can be labelled nobody is asked.
        judges = found.held_out_people[-options.windows :] if len(x) else ()
        try:
            guesses = self._guessed(footing.bench.served(state), x, found.windows, options, limits)
        except _OverBudget:
            guesses = Guesses(why="over-budget")
        kept = Kept(
            plan.id,
            found.digest,
            footing.digest,
            tuple(int(windows.ids[row]) for row in guesses.rows),
            tuple(map(int, guesses.labels)),
            tuple(sorted(set(judges))),
            _said(guesses, len(x)),
        )
        people = frozenset((*(windows.people[row] for row in guesses.rows), *judges))
        return Chosen(kept, x[guesses.rows], people)

    def keep(self, chosen: Chosen) -> None:
        """Keep what a training takes, in the transaction that begins it.

        Raises:
            StorageError: It could not be kept.
        """
        if chosen.kept is not None:
            put_kept(self._store, chosen.kept)

    def _unlabelled(
        self, about: BaseRecord, options: PseudoLabels
    ) -> tuple[Loaded, NDArray[np.float32]]:
        """Return the newest windows without a label that may train, but for faults of a sensor."""
        shape = (about.model.channels, about.model.window)
        found = self._store.windows.load(
            shape, split="train", labelled=False, newest=options.windows
        )
        with np.errstate(over="ignore", invalid="ignore"):
            x = _normalised(about, found.x)
            # A network is as sure of what it has never seen the like of.
            sound = np.abs(x).max(axis=(1, 2), initial=0.0) <= USUAL_VALUE
        rows = np.flatnonzero(sound)
        kept = Loaded(
            found.ids[rows],
            found.x[rows],
            tuple(found.labels[row] for row in rows),
            tuple(found.people[row] for row in rows),
            found.start_s[rows],
            found.damaged,
        )
        return kept, x[rows]

    def _guessed(
        self,
        network: nn.Module,
        x: NDArray[np.float32],
        known: Windows,
        options: PseudoLabels,
        limits: _Limits,
    ) -> Guesses:
        def forward(windows: NDArray[np.float32]) -> NDArray[np.float64]:
            parts = []
            for first in range(0, len(windows), BATCH_WINDOWS):
                self._check(limits)
                parts.append(probabilities(network, windows[first : first + BATCH_WINDOWS]))
            return np.concatenate(parts)

        return guessed(
            forward,
            known.test_x[-options.windows :],
            known.test_y[-options.windows :],
            x,
            threshold=options.threshold,
            precision=options.precision,
            total=max(1, round(options.share * len(known.train_y))),
        )

    def _check(self, limits: _Limits) -> None:
        if self._world.stopping.is_set():
            raise RoundError(STOPPING, "the agent ends before the training began")
        now = self._world.monotonic()
        if now >= limits.until:
            raise RoundError("over-time", "the plan's time was over before the training began")
        if now >= limits.budget:
            raise _OverBudget


def _normalised(about: BaseRecord, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return normalisation_of(about).apply(x)


def _said(guesses: Guesses, looked_at: int) -> Mapping[str, Any]:
    said: dict[str, Any] = {
        "used": len(guesses.rows),
        "looked-at": looked_at,
        "right": guesses.right,
        "confident": guesses.confident,
    }
    return said | ({"none": guesses.why} if guesses.why else {})
