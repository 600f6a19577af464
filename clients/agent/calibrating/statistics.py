"""Statistics: takes the device's own of its last windows, and gives what computes under them.

Laws (tests/clients/agent/calibrating): off, the device is one that never had any; a training that
was killed goes on under those that it began with; who is forgotten is in none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clients.agent.calibrating.kept import DROPS, KEPT, TAKEN, Kept, kept_of, put_kept
from clients.agent.calibrating.settings import OwnStatistics
from clients.agent.learner import Workbench
from clients.agent.serving.probe import normalisation_of
from clients.agent.store import Store
from clients.agent.store.following import count_after, spread
from clients.agent.store.forget import FORGETS
from clients.agent.store.records import Loaded
from fleet.adapt.digest import digest_json
from fleet.continual.calibration import Calibration, calibrated, calibration_of, trust_of
from fleet.errors import FleetError, InputError, ModelError, StorageError

if TYPE_CHECKING:
    from clients.agent.answering.world import World
    from clients.agent.config import DeviceConfig

__all__ = [
    "BATCH_WINDOWS",
    "LARGEST_VALUE",
    "RENEW",
    "SPREAD",
    "STRAY",
    "USUAL_VALUE",
    "Footing",
    "Statistics",
]

BATCH_WINDOWS = 32
"""Windows that run together, up to twice as many: about as much memory as a training takes."""
STRAY = 10
"""A window whose largest number is so many times that of the middle one is no movement but a fault;
it alone would be the statistics."""
USUAL_VALUE = 50.0
"""Numbers up to so many standard deviations of the base are a movement, whatever the others are."""
LARGEST_VALUE = 1e6
"""Numbers beyond so many are of no sensor that works."""
SPREAD = 16
"""They are taken of one in so many of the newest windows, where there are as many: those of a few
minutes may be of one activity alone, and lean to it."""
RENEW = 4
"""In idle time they are taken anew once one in so many of their windows would be another."""


@dataclass(frozen=True, eq=False)
class Footing:
    """What a device computes on: the fleet's network, or the one under statistics of its own.

    Args:
        bench: Base and network.
        kept: The statistics; None for the fleet's.
    """

    bench: Workbench
    kept: Kept | None = None

    @property
    def digest(self) -> str:
        """Digest of the statistics; empty for the fleet's."""
        return "" if self.kept is None else self.kept.digest

    @property
    def people(self) -> frozenset[str]:
        """Whose windows the statistics were taken of."""
        return frozenset() if self.kept is None else self.kept.people

    def named(self, windows: str) -> str:
        """Return the digest of the windows that are trained on, and of the statistics."""
        return digest_json([windows, self.digest]) if self.kept is not None else windows


class Statistics:
    """A device's own batch-norm statistics; the caller sees to it that nothing else is at work.

    Args:
        store: Windows, and what is kept of them.
        bench: The base and its folded network, which all share.
        config: Reads the device's configuration, which its owner may change at any time.
        world: Its clock, and who is told.
    """

    def __init__(
        self, store: Store, bench: Workbench, config: Callable[[], DeviceConfig], world: World
    ) -> None:
        self._store = store
        self._config = config
        self._world = world
        self.follow(bench)

    def follow(self, bench: Workbench) -> None:
        """Take statistics of another base from now on; those of the one before are void."""
        self._shared = bench
        model = bench.base.record.model
        self._shape = (model.channels, model.window)
        self._made: tuple[str, Workbench] = ("", bench)
        self._told: set[str] = set()
        self._possible = True
        self._refused = 0  # newest window when the windows that there are gave none

    @property
    def shared(self) -> Footing:
        """The fleet's own."""
        return Footing(self._shared)

    def footing(self) -> Footing:
        """Return the newest; the fleet's when off, or where none of this base is whole."""
        return self._footing_of(self._read(KEPT))

    def taken(self) -> Footing:
        """Return those under which the last training began, see :meth:`take`."""
        return self._footing_of(self._read(TAKEN))

    def bench(self) -> Workbench:
        """Return what a training or an inference under the newest computes with."""
        return self.footing().bench

    def take(self) -> Footing:
        """Take the newest for a training that begins now.

        Raises:
            StorageError: They could not be kept.
        """
        self.refresh()
        # At once, so that nobody who is forgotten in between comes back.
        with self._store.transaction():
            kept = self._read(KEPT)
            if kept is not None:
                put_kept(self._store, kept, TAKEN)
        return self._footing_of(kept)

    def look(self) -> None:
        """In idle time: take them anew where enough has come since.

        Raises:
            StorageError: They could not be kept.
        """
        options = self._config().statistics
        if not options.own:
            return
        kept = self._read(KEPT)
        if kept is not None and kept.wanted == options.windows:
            wanted = max(1, kept.spanned // RENEW)
            due = self._after(kept.last, wanted) >= wanted
        else:
            least = options.min_windows
            due = self._after(self._refused, 1) > 0 and self._after(0, least) >= least
        if due:
            self.refresh()

    def refresh(self) -> None:
        """Take them anew, spread over the newest windows, in one pass, if a window has come since.

        Nothing is kept of too few windows, nor of a network without batch norms; what was kept
        before stays then.

        Raises:
            StorageError: They could not be kept.
        """
        options = self._config().statistics
        if not (options.own and self._possible):
            return
        before = self._marks()
        kept = self._read(KEPT)
        if kept and kept.wanted == options.windows and not self._after(kept.last, 1):
            return
        most = options.windows
        found, spanned = spread(self._store.database, self._shape, most, SPREAD * most)
        try:
            made = self._taken_of(found, spanned, options)
        except (InputError, ModelError) as error:
            self._possible = not isinstance(error, ModelError)
            self._refused = int(found.ids[-1]) if len(found.ids) else 0
            self._tell_once(error)
            return
        with self._store.transaction():
            unknown = self._store.windows.unknown(made.people)
            if unknown or self._marks() != before or not self._config().statistics.own:
                return
            put_kept(self._store, made)
        self._world.say("statistics.taken", windows=made.windows, digest=made.digest)

    def _taken_of(self, found: Loaded, spanned: int, options: OwnStatistics) -> Kept:
        """Return the statistics of windows that are spread over so many.

        Raises:
            InputError: ``too-few-windows`` or ``statistics-not-finite``.
            ModelError: ``nothing-to-train`` for a network without batch norms.
        """
        base = self._shared.base
        with np.errstate(over="ignore", invalid="ignore"):
            x = normalisation_of(base.record).apply(found.x)
            largest = np.abs(x).max(axis=(1, 2), initial=0.0)
        rows = np.flatnonzero(largest <= _limit(largest))
        count = len(rows)
        if count < options.min_windows:
            raise InputError(
                "too-few-windows", f"there are {count} whole windows, not {options.min_windows}"
            )
        calibration = calibration_of(base, x[rows], trust=trust_of(count), batch=BATCH_WINDOWS)
        arrays = calibration.arrays()
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise InputError("statistics-not-finite", "the windows' statistics are not finite")
        return Kept(
            base=base.digest,
            arrays=arrays,
            windows=count,
            wanted=options.windows,
            spanned=spanned,
            last=int(found.ids[-1]),
            people=frozenset(found.people[row] for row in rows),
            made_s=self._world.now(),
        )

    def _read(self, key: str) -> Kept | None:
        if not self._config().statistics.own:
            return None
        try:
            kept = kept_of(self._store, key)
            if kept is not None and kept.base != self._shared.base.digest:
                raise StorageError(
                    "statistics-other-base", f"they are of base {kept.base[:12]}…", ""
                )
        except StorageError as error:
            if not error.code.startswith("statistics-"):
                raise
            self._tell_once(error)
            return None
        if kept is not None and kept.windows < self._config().statistics.min_windows:
            return None
        return kept

    def _footing_of(self, kept: Kept | None) -> Footing:
        if kept is None:
            return Footing(self._shared)
        if self._made[0] != kept.digest:
            calibration = Calibration.of_arrays(kept.arrays)
            network = calibrated(self._shared.network, calibration)
            bench = Workbench(self._shared.base, network, calibration.maps)
            self._made = (kept.digest, bench)
        return Footing(self._made[1], kept)

    def _after(self, window: int, most: int) -> int:
        return count_after(self._store.database, self._shape, window, most)

    def _marks(self) -> tuple[int, int]:
        """Return how often somebody was forgotten, and how often the owner dropped them."""
        state = self._store.state
        return int(state.get(FORGETS, 0)), int(state.get(DROPS, 0))

    def _tell_once(self, error: FleetError) -> None:
        if error.code not in self._told:
            self._told.add(error.code)
            self._world.say("statistics.refused", reason=error.code, detail=error.message)


def _limit(largest: NDArray[np.floating[Any]]) -> float:
    """Return up to what number windows are a movement, given the largest of each."""
    sound = largest[np.isfinite(largest)]
    middle = float(np.median(sound)) if len(sound) else 0.0
    return min(LARGEST_VALUE, max(USUAL_VALUE, STRAY * middle))
