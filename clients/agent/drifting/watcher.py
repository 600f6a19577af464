"""The watcher: shows the store's windows to drift detectors, once each, and keeps their alarms.

Laws (tests/clients/agent/drifting): an agent that is killed anywhere and starts again ends with the
alarms of one that was not; what is kept does not grow with the windows seen; whoever is forgotten
during a look is not in what it keeps.

Signals come from the base, which stays while releases move: a release is no drift.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clients.agent.drifting.kept import (
    REFERENCE,
    VERSION,
    Alarm,
    Memory,
    forgets_of,
    label_cursor_of,
    memory_of,
    note_alarms,
    put_cursor,
    put_memory,
    reference_of,
    window_cursor_of,
)
from clients.agent.drifting.participation import changed_s, renew
from clients.agent.drifting.reference import narrowed, pack, unpack
from clients.agent.drifting.settings import Drift, Signal
from clients.agent.serving.probe import normalisation_of
from clients.agent.store import Store
from clients.agent.store.following import LabelCursor, count_after, labelled_after, windows_after
from clients.agent.watching import features_of
from fleet.continual.drift import Detector, LabelFreeDrift, LossDrift, restore
from fleet.continual.signals import Reference, signals
from fleet.errors import FleetError, StorageError

if TYPE_CHECKING:
    from clients.agent.answering.world import World
    from clients.agent.config import DeviceConfig
    from clients.agent.learner import Workbench

__all__ = ["BATCH_WINDOWS", "Watcher"]

BATCH_WINDOWS = 256
"""Windows of one step: what is computed again after a kill, and what a plan waits for at most."""

Floats = NDArray[np.float32]


class Watcher:
    """Watches one device's stream; the caller sees to it that nothing else is at work.

    Args:
        store: Windows, labels, and what is kept of them.
        bench: The base and its folded network.
        config: Reads the device's configuration, which its owner may change at any time.
        world: Its clock, and who is told of alarms.
    """

    def __init__(
        self, store: Store, bench: Workbench, config: Callable[[], DeviceConfig], world: World
    ) -> None:
        self._store = store
        self._config = config
        self._world = world
        self._told: set[tuple[str, str]] = set()
        self.follow(bench)

    def follow(self, bench: Workbench) -> None:
        """Watch by another base from the next step on; what was kept of the one before is void."""
        self._bench = bench
        model = bench.base.record.model
        self._shape = (model.channels, model.window)

    def step(self) -> bool:
        """Show each detector its next windows, at most :data:`BATCH_WINDOWS`.

        Returns:
            Whether more are waiting.

        Raises:
            StorageError: Nothing of a step was kept; it is done again.
        """
        drift = self._config().drift
        if not drift.watch:
            return False
        if changed_s(self._store) is None:
            renew(self._store, self._world.now())  # the device joins
        steps: dict[Signal, Callable[[Drift], bool]] = {
            "label-free": self._label_free,
            "loss": self._loss,
        }
        waiting = [self._tried(name, steps[name], drift) for name in drift.signals]
        return any(waiting)

    def _tried(self, name: Signal, step: Callable[[Drift], bool], drift: Drift) -> bool:
        """Do a signal's step; one that cannot be watched, e.g. without river, is told once."""
        try:
            return step(drift)
        except StorageError:
            raise
        except FleetError as error:
            if (name, error.code) not in self._told:
                self._told.add((name, error.code))
                self._world.say(
                    "drift.refused", signal=name, reason=error.code, detail=error.message
                )
            return False

    def _label_free(self, drift: Drift) -> bool:
        forgets, cursor = forgets_of(self._store), window_cursor_of(self._store)
        reference = self._reference()
        if reference is None:
            return self._learned_reference(drift, forgets, cursor)
        found, last = windows_after(self._store.database, self._shape, cursor, BATCH_WINDOWS)
        if last == cursor:
            return False
        detector, before = self._detector("label-free", _label_free_of(drift))
        features, logits, whole = self._seen(found.x)
        rows = detector.update(signals(logits, features, reference)) if whole.any() else ()
        memory = Memory(self._bench.base.digest, before + len(features), detector.state())
        alarms = self._alarms("label-free", rows, found.start_s[whole])
        self._keep("label-free", forgets, last, memory, alarms)
        return self._waiting(last)

    def _loss(self, drift: Drift) -> bool:
        forgets, cursor = forgets_of(self._store), label_cursor_of(self._store)
        detector, before = self._detector("loss", LossDrift(drift.loss_delta, drift.loss_warm_up))
        found, moved = labelled_after(self._store.database, self._shape, cursor, BATCH_WINDOWS)
        if moved == cursor:
            return False
        index = {name: number for number, name in enumerate(self._bench.base.record.labels)}
        classes = np.array([index.get(label or "", -1) for label in found.labels], dtype=np.int64)
        known = classes >= 0
        _, logits, whole = self._seen(found.x[known])
        known[known] = whole
        errors = (logits.argmax(axis=1) != classes[known]).astype(np.float64)
        rows = detector.update(errors)
        memory = Memory(self._bench.base.digest, before + len(errors), detector.state())
        alarms = self._alarms("loss", rows, found.start_s[known])
        self._keep("loss", forgets, moved, memory, alarms)
        return True

    def _detector(self, signal: Signal, fresh: Detector) -> tuple[Detector, int]:
        """Return a signal's detector and how many windows it has seen.

        The fresh one where none is kept, or one of another base, of other settings, or damaged.
        """
        memory = memory_of(self._store, signal)
        if memory is None or memory.base != self._bench.base.digest:
            return fresh, 0
        try:
            kept = restore(memory.state)
        except StorageError as error:
            self._world.say("drift.restarted", signal=signal, reason=error.code)
            return fresh, 0
        if not _alike(kept, fresh):
            self._world.say("drift.restarted", signal=signal, reason="other settings")
            return fresh, 0
        return kept, memory.seen

    def _reference(self) -> Reference | None:
        packed = reference_of(self._store)
        try:
            return None if packed is None else unpack(packed, self._bench.base.digest)
        except StorageError as error:
            self._world.say("drift.restarted", signal="label-free", reason=error.code)
            return None

    def _learned_reference(self, drift: Drift, forgets: int, cursor: int) -> bool:
        """Learn the reference as soon as there are windows enough; tells whether there were."""
        wanted = drift.reference_windows
        if count_after(self._store.database, self._shape, cursor) < wanted:
            return False
        found, last = windows_after(self._store.database, self._shape, cursor, wanted)
        features, logits, _ = self._seen(found.x)
        packed = None
        if len(features) > 1:  # else nearly all of them are damaged
            predicted = logits.argmax(axis=1).astype(np.int64)
            reference = Reference.of(features, predicted, logits.shape[1])
            packed = {"version": VERSION, **pack(reference, self._bench.base.digest)}
        with self._store.transaction():
            if forgets_of(self._store) == forgets:
                put_cursor(self._store, "label-free", last)
                if packed is not None:
                    self._store.state.put(REFERENCE, packed)
        return True

    def _seen(self, x: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Return what the base makes of raw windows ``(n, channels, window)``.

        A sensor's numbers may be finite and so large that the base's are not. One such window would
        be in the sums of a detector for good, so it is passed over.

        Returns:
            Features, not too wide, and logits of the windows where all of them are finite, and
            which those are, ``(n,)``.
        """
        base = self._bench.base.record
        if not len(x):
            nothing = np.zeros((0, len(base.labels)), np.float32)
            return nothing, nothing, np.zeros(0, np.bool_)
        with np.errstate(over="ignore", invalid="ignore"):
            features, logits = features_of(self._bench.network, normalisation_of(base).apply(x))
            features = narrowed(features)
        whole = np.asarray(np.isfinite(np.hstack([features, logits])).all(axis=1))
        return features[whole], logits[whole], whole

    def _alarms(
        self, signal: Signal, rows: tuple[int, ...], start_s: NDArray[np.float64]
    ) -> list[Alarm]:
        now_s = self._world.now()
        return [Alarm(signal, now_s, float(start_s[row])) for row in rows]

    def _keep(
        self,
        signal: Signal,
        forgets: int,
        cursor: int | LabelCursor,
        memory: Memory,
        alarms: list[Alarm],
    ) -> None:
        """Keep a step, unless somebody was forgotten meanwhile: then it is done again without."""
        with self._store.transaction():
            if forgets_of(self._store) != forgets:
                return
            put_cursor(self._store, signal, cursor)
            put_memory(self._store, signal, memory)
            if alarms:
                note_alarms(self._store, alarms)
                renew(self._store, alarms[-1].at_s)
        for alarm in alarms:
            self._world.say("drift.alarm", signal=signal, window_s=alarm.window_s)

    def _waiting(self, cursor: int) -> bool:
        return count_after(self._store.database, self._shape, cursor) > 0


def _label_free_of(drift: Drift) -> LabelFreeDrift:
    return LabelFreeDrift(
        test=drift.test,
        parameter=drift.threshold or None,
        block=drift.block,
        warm_up=drift.warm_up,
    )


def _alike(kept: Detector, fresh: Detector) -> bool:
    """Tell whether two detectors were made with the same parameters."""
    names = ("kind", "columns", "test", "parameter", "block", "warm_up", "delta")
    one, other = kept.state(), fresh.state()
    return all(
        one.get(name) == other.get(name) for name in names if not isinstance(one.get(name), list)
    )
