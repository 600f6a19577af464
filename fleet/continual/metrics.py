"""What continual learning came to: over time, on what was, and for the worst served.

Rows of a *task matrix* are moments after a task was learned, columns are tasks: ``R[i, j]`` is the
score on task j after task i (Lopez-Paz & Ranzato, "Gradient Episodic Memory", arXiv:1706.08840,
section 2). Scores here are macro-F1 from pooled confusion counts. A task is what lies between two
changes of a scenario.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.measure.f1 import macro_f1_present

__all__ = [
    "OverTime",
    "backward_transfer",
    "class_f1",
    "forgetting_by_class",
    "forward_transfer",
    "helped",
    "over_time",
    "pooled",
    "sum_of",
]

Confusions = Mapping[str, NDArray[np.int64]]
WORST_SHARE = 10


@dataclass(frozen=True)
class OverTime:
    """Macro-F1 of what was served, period by period, before the period was learned from.

    Args:
        pooled: Of all devices' windows together, one per period; NaN without windows.
        worst_decile: Mean of the worst tenth of the devices (one at least), one per period.
        average: Mean of ``pooled`` over the periods that could be judged: average accuracy over
            time; NaN where none could.
        worst_average: Mean of ``worst_decile`` over the same.
    """

    pooled: tuple[float, ...]
    worst_decile: tuple[float, ...]
    average: float
    worst_average: float


def over_time(periods: Sequence[Confusions]) -> OverTime:
    """Score a stream test-then-train (Gama et al., doi:10.1007/s10994-012-5320-9, prequential).

    Args:
        periods: By period: confusion counts ``(classes, classes)`` by device.
    """
    whole = [pooled(period.values()) for period in periods]
    worst = [_worst(period) for period in periods]
    return OverTime(tuple(whole), tuple(worst), _mean(whole), _mean(worst))


def pooled(counts: Iterable[NDArray[np.int64]]) -> float:
    """Return macro-F1 of counts added up, over the classes that have windows; NaN without any.

    Counts of fewer classes than others are of a head that had not grown: the classes that it lacks
    are never predicted.
    """
    tables = [table for table in counts if table.sum()]
    if not tables:
        return float("nan")
    return macro_f1_present(sum_of(tables))


def sum_of(tables: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Add confusion counts, the smaller ones in the corner of the largest."""
    classes = max(len(table) for table in tables)
    total = np.zeros((classes, classes), np.int64)
    for table in tables:
        total[: len(table), : len(table)] += table
    return total


def class_f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return F1 by class ``(classes,)``; NaN for a class without windows."""
    hits = np.diag(counts).astype(np.float64)
    held = counts.sum(axis=1)
    both = held + counts.sum(axis=0)
    f1 = np.divide(2 * hits, both, out=np.zeros_like(hits), where=both > 0)
    return np.where(held > 0, f1, np.nan)


def backward_transfer(scores: NDArray[np.float64]) -> float:
    """Return by how much earlier tasks are better at the end than when they had been learned.

    ``mean over j < T of R[T, j] - R[j, j]`` (arXiv:1706.08840, eq. 3); NaN with fewer than two
    tasks that could be judged.

    Args:
        scores: ``R``, float64 ``(tasks, tasks)``; NaN where nobody was there.
    """
    last = len(scores) - 1
    if last < 1:
        return float("nan")
    return _mean((scores[last, :last] - np.diag(scores)[:last]).tolist())


def forward_transfer(scores: NDArray[np.float64], start: NDArray[np.float64]) -> float:
    """Return by how much a task is better before it is met than the base was on it.

    ``mean over j > 0 of R[j - 1, j] - start[j]`` (arXiv:1706.08840, eq. 4, with the pre-trained
    base in place of random weights).

    Args:
        scores: ``R``, float64 ``(tasks, tasks)``.
        start: The base's score on each task ``(tasks,)``.
    """
    if len(scores) < 2:
        return float("nan")
    before = np.array([scores[j - 1, j] for j in range(1, len(scores))])
    return _mean((before - start[1:]).tolist())


def forgetting_by_class(f1: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by class how far its best F1 of an earlier moment is above the last one.

    Chaudhry et al., arXiv:1801.10112, eq. 3, by class in place of task.

    Args:
        f1: By moment and class, float64 ``(moments, classes)``; NaN where a class was not there.

    Returns:
        float64 ``(classes,)``; negative where the last moment is the best, NaN for a class with
        fewer than two.
    """
    lost = np.full(f1.shape[1], np.nan)
    for label in range(f1.shape[1]):
        known = f1[:, label][~np.isnan(f1[:, label])]
        if len(known) > 1 and not np.isnan(f1[-1, label]):
            lost[label] = known[:-1].max() - known[-1]
    return lost


def helped(
    with_it: Confusions, without: Confusions, *, margin: float = 0.01
) -> tuple[float, float]:
    """Return the share of devices that something helps, and of those that it hurts.

    Args:
        with_it: Confusion counts by device with it.
        without: Those without it, of the same windows.
        margin: Smallest difference in macro-F1 that counts.

    Returns:
        Shares of the devices that have windows; NaN twice without any.
    """
    gains = [
        macro_f1_present(with_it[device]) - macro_f1_present(without[device])
        for device in sorted(with_it)
        if device in without and with_it[device].sum()
    ]
    if not gains:
        return float("nan"), float("nan")
    found = np.array(gains)
    return float((found > margin).mean()), float((found < -margin).mean())


def _worst(period: Confusions) -> float:
    own = sorted(macro_f1_present(counts) for counts in period.values() if counts.sum())
    return _mean(own[: max(1, len(own) // WORST_SHARE)])


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
