"""Macro-F1 from confusion counts.

Pooled macro-F1 is taken from one confusion matrix over all test windows of all devices; it equals
scikit-learn's ``f1_score(average="macro", labels=all known)``. A device's own macro-F1 leaves out
the classes that its test windows do not hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.errors import MismatchError

__all__ = ["FleetScore", "confusion", "macro_f1", "macro_f1_present", "score_fleet"]


def confusion(
    truth: NDArray[np.integer], predicted: NDArray[np.integer], classes: int
) -> NDArray[np.int64]:
    """Count windows by (true class, predicted class): ``(classes, classes)`` int64.

    Raises:
        MismatchError: ``class-range``.
    """
    for what, values in (("true", truth), ("predicted", predicted)):
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < classes:
            raise MismatchError(
                "class-range",
                f"{what} classes are 0 to {classes - 1}, not {values.min()} to {values.max()}",
                "Data set and model disagree on the classes.",
            )
    flat = truth.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


def macro_f1(counts: NDArray[np.int64]) -> float:
    """Mean F1 over all classes; a class that is neither true nor predicted counts as 0.

    >>> macro_f1(np.array([[5, 0], [0, 5]]))
    1.0
    """
    return float(_f1(counts).mean())


def macro_f1_present(counts: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that have test windows; NaN when there are none."""
    present = counts.sum(axis=1) > 0
    return float(_f1(counts)[present].mean()) if present.any() else float("nan")


@dataclass(frozen=True)
class FleetScore:
    """How well a fleet is served.

    Args:
        pooled: Macro-F1 of one confusion matrix over all test windows.
        devices_mean: Mean of the devices' own macro-F1.
        worst_decile: Mean over the worst tenth of the devices (at least one).
    """

    pooled: float
    devices_mean: float
    worst_decile: float


def score_fleet(counts: Sequence[NDArray[np.int64]]) -> FleetScore:
    """Score a fleet from its devices' confusion counts; devices without tests do not count."""
    tested = [c for c in counts if c.sum() > 0]
    if not tested:
        return FleetScore(float("nan"), float("nan"), float("nan"))
    own = np.sort([macro_f1_present(c) for c in tested])
    worst = own[: max(1, len(own) // 10)]
    pooled = macro_f1(np.sum(tested, axis=0))
    return FleetScore(pooled, float(own.mean()), float(worst.mean()))


def _f1(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    hits = np.diag(counts).astype(np.float64)
    denominator = counts.sum(axis=0) + counts.sum(axis=1)
    f1: NDArray[np.float64] = np.divide(
        2 * hits, denominator, out=np.zeros_like(hits), where=denominator > 0
    )
    return f1
