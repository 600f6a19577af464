"""What a device that goes on learning keeps from period to period: frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.state import CoreState
from fleet.continual.calibration import Calibration
from fleet.continual.replay import Replay
from fleet.errors import InputError

__all__ = ["ALARMS_KEPT", "DeviceMemory", "Labelled", "arrival_ids", "known_of", "source_of"]

ALARMS_KEPT = 64
# An id is an arrival and, in its low bits, the window that arrived: a window may come again.
SOURCE_BITS = 24
# Most copies of a window in one period, and more than a scenario has windows in one.
COPY_BITS = 14


@dataclass(frozen=True, eq=False)
class Labelled:
    """Windows whose labels are known.

    Args:
        x: Normalised, float32 ``(n, channels, window)``.
        y: int64 ``(n,)``.
        ids: Stable and distinct on the device, int64 ``(n,)``; see :func:`arrival_ids`.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    @property
    def source(self) -> NDArray[np.int64]:
        """Which window each is, ``(n,)``: the same number whenever it comes again."""
        return source_of(self.ids)

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


def arrival_ids(sources: NDArray[np.int64], period: int) -> NDArray[np.int64]:
    """Return ids ``(n,)`` of windows that arrive in a period, distinct over all periods.

    Args:
        sources: Which windows, int64 ``(n,)``, below 2^24; the same one may come several times.
        period: Below 2^25.

    Raises:
        InputError: ``window-number`` for one that does not fit.

    >>> source_of(arrival_ids(np.array([7, 3, 7]), 2))
    array([7, 3, 7])
    """
    if len(sources) and sources.max() >> SOURCE_BITS:
        raise InputError(
            "window-number",
            f"windows are numbered below {1 << SOURCE_BITS:,}, not {sources.max():,}",
            "Use a data set of fewer windows.",
        )
    order = np.argsort(sources, kind="stable")
    ordered, copies = sources[order], np.empty(len(sources), np.int64)
    copies[order] = np.arange(len(sources)) - np.searchsorted(ordered, ordered)
    return (((period << COPY_BITS) | copies) << SOURCE_BITS) | sources


def source_of(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which window each id is an arrival of, ``(n,)``."""
    return ids & ((1 << SOURCE_BITS) - 1)


def known_of(memory: DeviceMemory, fresh: Labelled) -> Labelled:
    """Return the fresh windows and those of the replay buffer, each once."""
    replay = memory.replay
    x, y = replay.windows()
    ids = replay.ids
    new = ~np.isin(fresh.ids, ids)
    return Labelled(
        np.concatenate([x, fresh.x[new]]) if len(y) else fresh.x[new],
        np.concatenate([y, fresh.y[new]]),
        np.concatenate([ids, fresh.ids[new]]),
    )
