"""Recordings to stream: made up, or re-joined from a data set's windows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.agent.intake import IntakeSpec
from clients.agent.store import SplitRule
from fleet.har.dataset import DataSet
from simulations.recordings import GAP_S, Array, streamed, stretches, write_csv

__all__ = ["GAP_S", "Array", "rejoined", "small_spec", "streamed", "write_csv"]


def small_spec(**changes: Any) -> IntakeSpec:
    """Two channels at 50 Hz, windows of 8 at stride 4."""
    values: dict[str, Any] = {
        "columns": ("a", "b"),
        "factors": (1.0, 1.0),
        "rate_hz": 50.0,
        "window": 8,
        "stride": 4,
        "split": SplitRule(kind="train"),
    }
    return IntakeSpec(**(values | changes))


def rejoined(dataset: DataSet, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Yield the stretches ``[T, c]`` whose windows are the given rows, in order."""
    yield from stretches(dataset.physical(rows), dataset.stride)
