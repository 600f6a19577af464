"""Windows out of a file or a stream: what ``fleet-device infer`` reads."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.base import BaseRecord
from fleet.errors import InputError
from fleet.har.windows import segment

__all__ = ["csv_windows", "labelled_windows", "npz_windows"]

_NPZ_HINT = (
    "The file holds x (n, channels, window), with scale (channels,) where x is int16 as in "
    "canonical data sets, or samples (time, channels); both in the base's units and at its rate."
)


def npz_windows(path: Path, about: BaseRecord) -> NDArray[np.float32]:
    """Read windows ``(n, channels, window)`` float32 of ``x`` or cut from ``samples``.

    Args:
        path: An ``.npz`` file; nothing in it is unpickled.
        about: The base's record, for window and stride.

    Raises:
        InputError: ``npz-unreadable``.
    """
    arrays = _arrays(path)
    if "x" in arrays:
        return _scaled(arrays)
    if "samples" in arrays:
        cut = segment(arrays["samples"].astype(np.float32), about.window, about.stride)
        return cut.astype(np.float32, copy=False)
    raise InputError("npz-unreadable", f"{path} holds neither x nor samples", _NPZ_HINT)


def labelled_windows(
    path: Path, about: BaseRecord
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Read windows ``x (n, channels, window)`` and their classes ``y (n,)``, in the base's units.

    Raises:
        InputError: ``npz-unreadable``, or ``labels-range`` when a class is none of the base's.
    """
    arrays = _arrays(path)
    if "x" not in arrays or "y" not in arrays:
        raise InputError("npz-unreadable", f"{path} lacks x or y", _NPZ_HINT)
    y = arrays["y"].astype(np.int64)
    if y.size and not 0 <= y.min() <= y.max() < len(about.labels):
        raise InputError("labels-range", f"classes are 0 to {len(about.labels) - 1} in {path}")
    return _scaled(arrays), y


def csv_windows(
    lines: Iterable[str], about: BaseRecord
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield ``(index of the first sample, window (1, channels, window))`` as lines come in.

    Args:
        lines: CSV with a header that names the base's channels; other columns are passed over. One
            row is one sample at the base's rate and in its units.
        about: The base's record.

    Raises:
        InputError: ``csv-header``, ``csv-number`` or ``bad-window``.
    """
    if about.stride > about.window:
        raise InputError(
            "bad-window", f"the base's stride {about.stride} exceeds its window {about.window}"
        )
    rows = csv.reader(lines)
    columns = _columns(next(rows, []), about)
    held = np.zeros((about.window, len(columns)), np.float32)
    filled = first = 0
    for row in rows:
        if not row:
            continue
        held[filled] = _numbers(row, columns, rows.line_num)
        filled += 1
        if filled == about.window:
            yield first, held.T[None].copy()
            held[: -about.stride] = held[about.stride :].copy()
            filled -= about.stride
            first += about.stride


def _columns(header: list[str], about: BaseRecord) -> list[int]:
    names = [cell.strip() for cell in header]
    wanted = [name for name, _ in about.channels]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise InputError(
            "csv-header",
            f"the first line names no column {', '.join(missing)}; it has "
            f"{', '.join(names) or 'nothing'}",
            f"The base's channels: {', '.join(f'{n} [{u}]' for n, u in about.channels)}",
        )
    return [names.index(name) for name in wanted]


def _numbers(row: list[str], columns: list[int], line: int) -> list[float]:
    try:
        numbers = [float(row[column]) for column in columns]
    except (ValueError, IndexError) as error:
        raise InputError(
            "csv-number", f"line {line} lacks a number: {error}", "Leave out or fill gaps first."
        ) from error
    if not np.isfinite(numbers).all():
        raise InputError(
            "csv-number", f"line {line} holds NaN or infinity", "Leave out or fill gaps first."
        )
    return numbers


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it holds one bare array")
        with file:
            names = {"x", "y", "scale", "samples"} & set(file.files)
            return {name: file[name] for name in names}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError("npz-unreadable", f"{path} cannot be read: {error}", _NPZ_HINT) from error


def _scaled(arrays: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    x = arrays["x"]
    if x.dtype.kind in "iu" and "scale" in arrays and x.ndim == 3:
        x = x * arrays["scale"].astype(np.float32)[None, :, None]
    return x.astype(np.float32)
