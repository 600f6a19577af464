"""Recordings to stream: made up, or re-joined from a data set's windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.agent.intake import IntakeSpec
from clients.agent.store import SplitRule
from fleet.har.dataset import DataSet

Array = NDArray[np.float64]
GAP_S = 1.0


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


def stretches(x: NDArray[np.float32], stride: int) -> Iterator[NDArray[np.float32]]:
    """Yield the stretches ``[T, c]`` whose windows are ``x [n, c, t]``, in order.

    Neighbours are joined where they share their samples to the bit.
    """
    shared = x.shape[2] - stride
    pieces: list[NDArray[np.float32]] = []
    for place in range(len(x)):
        goes_on = place > 0 and np.array_equal(x[place - 1][:, stride:], x[place][:, :shared])
        if pieces and not goes_on:
            yield np.concatenate(pieces, axis=1).T
            pieces = []
        pieces.append(x[place][:, shared:] if pieces else x[place])
    if pieces:
        yield np.concatenate(pieces, axis=1).T


def streamed(
    stretches: Iterator[NDArray[np.float32]], rate_hz: float, origin_s: float = 1.7e9
) -> tuple[Array, Array]:
    """Put stretches behind each other in time, with a gap between them."""
    times, values, start_s = [], [], origin_s
    for stretch in stretches:
        times.append(start_s + np.arange(len(stretch)) / rate_hz)
        values.append(stretch.astype(np.float64))
        start_s = float(times[-1][-1]) + GAP_S
    return np.concatenate(times), np.concatenate(values)


def write_csv(path: Path, columns: Sequence[str], times: Array, values: Array) -> Path:
    rows = [",".join(("time", *columns))]
    rows += [
        ",".join(map(repr, (at, *row)))
        for at, row in zip(times.tolist(), values.tolist(), strict=True)
    ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
