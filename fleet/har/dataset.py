"""The data set as an object: windows, labels, people, and how to quantise, select and digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.errors import DataError
from fleet.har import checks

__all__ = ["ARRAYS", "Channel", "DataSet", "digest", "quantise", "select_labels"]

ARRAYS = ("x", "scale", "y", "subject", "rec")


@dataclass(frozen=True)
class Channel:
    """One sensor axis: its name, e.g. ``acc_x``, and its unit, e.g. ``m/s^2``."""

    name: str
    unit: str


@dataclass(frozen=True, eq=False)
class DataSet:
    """Windows of inertial signals of several people; arrays are never changed in place.

    Attributes:
        name: Short name, e.g. ``hapt``.
        labels: Activity names; ``y`` indexes them.
        channels: One per row of a window.
        rate_hz: Samples per second.
        window: Samples per window.
        stride: Samples between the starts of neighbouring windows of a segment.
        x: int16 ``[n, c, t]``; the physical value is ``x * scale``.
        scale: float32 ``[c]``, in the channel's unit per step.
        y: int16 ``[n]``.
        subject: int16 ``[n]``, the person who wore the sensor.
        rec: int32 ``[n]``, the recording; its rows are in time order.
        info: The rest of the JSON: licence, citation, placement and so on.
    """

    name: str
    labels: tuple[str, ...]
    channels: tuple[Channel, ...]
    rate_hz: float
    window: int
    stride: int
    x: NDArray[np.int16]
    scale: NDArray[np.float32]
    y: NDArray[np.int16]
    subject: NDArray[np.int16]
    rec: NDArray[np.int32]
    info: Mapping[str, object] = field(default_factory=dict)

    @property
    def subjects(self) -> tuple[int, ...]:
        """The people, in ascending order."""
        return tuple(np.unique(self.subject).tolist())

    def physical(self, index: NDArray[Any] | slice | None = None) -> NDArray[np.float32]:
        """Return windows in physical units.

        Args:
            index: Rows to take (integers, a mask or a slice); ``None`` takes all.

        Returns:
            float32 ``[k, c, t]``, a new array.
        """
        rows = self.x if index is None else self.x[index]
        return rows.astype(np.float32) * self.scale[None, :, None]


def quantise(
    x: NDArray[np.floating[Any]], scale: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Convert physical values to int16 steps; each value moves by at most half a step.

    Args:
        x: floating ``[n, c, t]`` in physical units.
        scale: float32 ``[c]`` step sizes; ``None`` fits each channel's largest value to 32767.

    Returns:
        ``(x int16 [n, c, t], scale float32 [c])``.

    Raises:
        DataError: ``not-quantisable`` when x is not floating ``[n, c, t]``, holds NaN or Inf, or
            exceeds what ``scale`` can express; names the windows and channels.
    """
    values = np.asarray(x)
    if values.ndim != 3 or values.dtype.kind != "f":
        raise DataError(
            "not-quantisable",
            f"x must be floating [windows, channels, time], not {values.dtype} {values.shape}",
        )
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    _refuse(~np.isfinite(values), "NaN or Inf", "Drop or repair these windows first.")
    if scale is None:
        largest = np.abs(values).max(axis=(0, 2), initial=0.0)
        fitted = np.maximum(largest / np.float32(32767), np.finfo(np.float32).tiny)
        scale = np.where(largest > 0, fitted, 1).astype(np.float32)
    # In float32 on purpose: the published canonical files were rounded like this.
    steps = np.rint(values / scale[None, :, None])
    _refuse(np.abs(steps) > 32767, "more than 32767 steps", "Use a larger scale, or none.")
    return steps.astype(np.int16), scale


def select_labels(dataset: DataSet, labels: Sequence[str]) -> DataSet:
    """Keep only the windows of ``labels``; ``y`` indexes them in the given order.

    Raises:
        DataError: ``unknown-label`` for names that the data set lacks or that come twice,
            ``no-windows`` when nothing is left.
    """
    problems = [f"no label {label!r}" for label in labels if label not in dataset.labels]
    if len(set(labels)) != len(labels):
        problems.append(f"labels must be unique, not {list(labels)}")
    if problems:
        known = f"Labels of {dataset.name}: {', '.join(dataset.labels)}."
        raise DataError.listing("unknown-label", dataset.name, problems, known)
    new_index = np.full(len(dataset.labels), -1, dtype=np.int16)
    for position, label in enumerate(labels):
        new_index[dataset.labels.index(label)] = position
    y = new_index[dataset.y]
    kept = np.flatnonzero(y >= 0)
    if len(kept) == 0:
        raise DataError("no-windows", f"{dataset.name} has no window of {', '.join(labels)}")
    return replace(
        dataset,
        labels=tuple(labels),
        x=dataset.x[kept],
        y=y[kept],
        subject=dataset.subject[kept],
        rec=dataset.rec[kept],
    )


def digest(dataset: DataSet) -> str:
    """Return the SHA-256, in hex, of what a learner sees: the arrays and how to read them.

    The data set's name and ``info`` do not enter; byte order and memory layout do not matter.
    """
    head = {
        "channels": [[channel.name, channel.unit] for channel in dataset.channels],
        "labels": list(dataset.labels),
        "rate_hz": float(dataset.rate_hz),
        "stride": dataset.stride,
        "window": dataset.window,
    }
    state = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name in sorted(ARRAYS):
        array = getattr(dataset, name)
        little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        state.update(f"{name} {little.dtype.str} {little.shape}".encode())
        state.update(little.data)
    return state.hexdigest()


def _refuse(bad: NDArray[np.bool_], what: str, hint: str) -> None:
    if bad.any():
        places = np.argwhere(bad.any(axis=2)).tolist()
        problems = [f"window {window}, channel {channel}" for window, channel in places]
        raise DataError.listing("not-quantisable", what, checks.bounded(problems), hint)
