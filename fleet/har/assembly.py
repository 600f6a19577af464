"""From labelled stretches of signal to a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.errors import DataError
from fleet.har.dataset import Channel, DataSet, quantise
from fleet.har.windows import segment

__all__ = ["INERTIAL", "RATE_HZ", "STRIDE", "WINDOW", "Piece", "assemble"]

RATE_HZ = 50.0
WINDOW = 128
STRIDE = 64
INERTIAL = (
    *(Channel(f"acc_{axis}", "m/s^2") for axis in "xyz"),
    *(Channel(f"gyro_{axis}", "rad/s") for axis in "xyz"),
)
# Fixed steps make data sets comparable bit for bit; they reach ±163 m/s² and ±65 rad/s.
STEP = {"m/s^2": 0.005, "rad/s": 0.002}


@dataclass(frozen=True, eq=False)
class Piece:
    """An unbroken stretch of one activity: samples ``[T, c]`` in physical units at 50 Hz."""

    samples: NDArray[np.float64]
    label: int
    subject: int
    rec: int


def assemble(
    name: str,
    labels: Sequence[str],
    channels: Sequence[Channel],
    pieces: Sequence[Piece],
    info: Mapping[str, object],
) -> DataSet:
    """Window every piece (128 samples, stride 64) and put them together in the given order.

    Raises:
        DataError: ``no-windows`` when every piece is shorter than a window, or
            ``not-quantisable`` when a value exceeds the fixed step's range.
    """
    windows = [segment(piece.samples, WINDOW, STRIDE).astype(np.float32) for piece in pieces]
    counts = [len(cut) for cut in windows]
    if sum(counts) == 0:
        raise DataError("no-windows", f"{name}: no recording is as long as a window ({WINDOW})")
    scale = np.array([STEP[channel.unit] for channel in channels], dtype=np.float32)
    x, scale = quantise(np.concatenate(windows), scale)
    return DataSet(
        name=name,
        labels=tuple(labels),
        channels=tuple(channels),
        rate_hz=RATE_HZ,
        window=WINDOW,
        stride=STRIDE,
        x=x,
        scale=scale,
        y=np.repeat([piece.label for piece in pieces], counts).astype(np.int16),
        subject=np.repeat([piece.subject for piece in pieces], counts).astype(np.int16),
        rec=np.repeat([piece.rec for piece in pieces], counts).astype(np.int32),
        info={**info, "saturated_values": 0},
    )
