"""A simulated device's windows as recordings that a real device can take in.

Windows that overlap are joined to stretches again, and stretches follow each other with a gap, so
that the intake cuts exactly the windows that the simulation gives to its learner, in their order.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fleet.files import write_text
from fleet.har.normalise import Normalisation

if TYPE_CHECKING:
    from fleet.har.population import LabelledWindows
    from fleet.har.virtual import VirtualFleet

__all__ = [
    "GAP_S",
    "ORIGIN_S",
    "Recordings",
    "raw_windows",
    "streamed",
    "stretches",
    "write_csv",
    "write_recordings",
]

GAP_S = 1.0
"""Seconds between two stretches; the intake begins a new segment there."""
ORIGIN_S = 1.7e9
"""When a recording begins, seconds since the epoch."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Recordings:
    """Files of one device, for ``fleet-device ingest`` and ``fleet-device label --file``.

    Args:
        train: CSV of samples, to take in with ``--split train``.
        held_out: CSV of later samples, to take in with ``--split held-out``.
        labels: CSV with from, to and label of every window of both.
    """

    train: Path
    held_out: Path
    labels: Path


def raw_windows(fleet: VirtualFleet, partition: int) -> tuple[LabelledWindows, LabelledWindows]:
    """Return a device's training and test windows as its sensor gives them, in physical units.

    Args:
        fleet: The devices of a run.
        partition: Which of them.
    """
    channels = len(fleet.population.dataset.channels)
    # Less 0 and divided by 1, every bit stays.
    untouched = Normalisation(np.zeros(channels, np.float32), np.ones(channels, np.float32))
    return fleet.windows(partition, untouched)


def write_recordings(fleet: VirtualFleet, partition: int, folder: Path) -> Recordings:
    """Write a device's windows as recordings.

    Args:
        fleet: The devices of a run.
        partition: Which of them.
        folder: Where the three files go; made when needed.

    Raises:
        StorageError: When a file could not be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = Recordings(folder / "train.csv", folder / "held-out.csv", folder / "labels.csv")
    labels: list[tuple[float, float, str]] = []
    start_s = ORIGIN_S
    names, rate_hz = fleet.population.dataset.labels, fleet.population.dataset.rate_hz
    columns = [channel.name for channel in fleet.population.dataset.channels]
    for path, windows in zip(
        (files.train, files.held_out), raw_windows(fleet, partition), strict=True
    ):
        pieces = list(stretches(windows.x, fleet.population.dataset.stride))
        times, values = streamed(iter(pieces), rate_hz, start_s)
        write_csv(path, columns, times, values)
        extents = _extents(times, [len(piece) for piece in pieces], fleet)
        labels += [(*at, names[y]) for at, y in zip(extents, windows.y.tolist(), strict=True)]
        # The held-out windows lie behind the others: one person does one thing at a time.
        start_s = float(times[-1]) + GAP_S if len(times) else start_s
    with files.labels.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("from", "to", "label"), *labels])
    return files


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
    stretches: Iterator[NDArray[np.float32]], rate_hz: float, origin_s: float = ORIGIN_S
) -> tuple[Array, Array]:
    """Put stretches behind each other in time, with a gap between them.

    Returns:
        Times ``[T]`` in seconds and samples ``[T, c]``, float64.
    """
    times, values, start_s = [], [], origin_s
    for stretch in stretches:
        times.append(start_s + np.arange(len(stretch)) / rate_hz)
        values.append(stretch.astype(np.float64))
        start_s = float(times[-1][-1]) + GAP_S
    return np.concatenate(times), np.concatenate(values)


def write_csv(path: Path, columns: Sequence[str], times: Array, values: Array) -> Path:
    """Write samples to a CSV with a column ``time``, every number to the bit; return the path.

    Raises:
        StorageError: When it could not be written.
    """
    rows = [",".join(("time", *columns))]
    rows += [
        ",".join(map(repr, (at, *row)))
        for at, row in zip(times.tolist(), values.tolist(), strict=True)
    ]
    write_text(path, "\n".join(rows) + "\n")
    return path


def _extents(
    times: NDArray[np.float64], lengths: Sequence[int], fleet: VirtualFleet
) -> list[tuple[float, float]]:
    """Return the times of each window's first and last sample."""
    window, stride = fleet.population.dataset.window, fleet.population.dataset.stride
    begins = np.cumsum([0, *lengths])[: len(lengths)]
    first = [
        int(begin) + place
        for begin, length in zip(begins, lengths, strict=True)
        for place in range(0, length - window + 1, stride)
    ]
    return [(float(times[at]), float(times[at + window - 1])) for at in first]
