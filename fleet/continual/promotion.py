"""Promotion: whether a release that a round has made is served, or the one before it stays.

Devices judge both on windows that they set aside and never train on, and send confusion counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.continual.metrics import pooled

__all__ = ["Verdict", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """What a candidate's trial came to.

    Args:
        promoted: Whether the fleet goes on with it.
        before: Pooled macro-F1 of the release before; NaN without windows.
        candidate: That of the candidate, on the same windows.
        windows: How many these were.
        reason: One sentence.
    """

    promoted: bool
    before: float
    candidate: float
    windows: int
    reason: str


def verdict(
    before: Iterable[NDArray[np.int64]], candidate: Iterable[NDArray[np.int64]], *, margin: float
) -> Verdict:
    """Decide on a candidate; without any windows it is promoted, for nothing speaks against it.

    Args:
        before: Confusion counts ``(classes, classes)`` of the release before, one per device.
        candidate: Those of the candidate on the same windows.
        margin: By how much it may be worse in pooled macro-F1, 0 or more.
    """
    tables = list(before)
    windows = sum(int(table.sum()) for table in tables)
    old, new = pooled(tables), pooled(candidate)
    if not windows:
        return Verdict(True, old, new, 0, "no device has windows set aside")
    promoted = new >= old - margin
    beside = "at most" if promoted else "more than"
    reason = f"macro-F1 {new:.4f} is {beside} {margin:g} below {old:.4f} on {windows} windows"
    return Verdict(promoted, old, new, windows, reason)
