"""The canonical files of a data set: ``NAME.npz`` with ``NAME.json`` beside it.

The objects live in :mod:`fleet.har.dataset`; this module repeats their names, so that one import
serves both.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.errors import DataError
from fleet.files import atomic_path, write_json
from fleet.har import checks
from fleet.har.dataset import ARRAYS, Channel, DataSet, digest, quantise, select_labels

__all__ = ["Channel", "DataSet", "digest", "quantise", "read", "select_labels", "write"]

MAX_UNPACKED_BYTES = 8 * 2**30
MAX_JSON_BYTES = 16 * 2**20
FORMAT_HINT = (
    "The format: x int16 [windows, channels, time], scale float32 [channels], y int16, subject"
    " int16 and rec int32 [windows] in NAME.npz; labels, channels with units, sampling_rate_hz,"
    " window and stride in NAME.json."
)
# Derived from the content at every write, so they are no part of ``DataSet.info``; the names of
# extra arrays are dropped with the arrays, lest a rewritten file promise what it does not hold.
DERIVED = frozenset(
    {"file", "sha256", "bytes", "shape", "n_windows", "n_subjects", "subjects", "window_seconds"}
    | {"windows_per_subject", "windows_per_label", "extra_arrays"}
)
FIELDS = frozenset({"name", "labels", "channels", "sampling_rate_hz", "window", "stride"})


def read(path: Path) -> DataSet:
    """Read and check a data set.

    Args:
        path: ``NAME.npz``, ``NAME.json`` or ``NAME``; both files stand side by side.

    Raises:
        DataError: ``data-missing``, ``json-missing``, ``json-invalid``, ``data-corrupt``,
            ``data-pickled``, or ``data-invalid`` with every broken rule at once.
    """
    npz, beside = _pair(path)
    if not npz.is_file():
        raise DataError(
            "data-missing", f"there is no file {npz}", "See the known data sets: fleet data list"
        )
    content = _read_description(beside)
    data = _read_arrays(npz)
    problems = _all_problems(content, data)
    problems += _stated_problems(content, data, npz, sound=not problems)
    if problems:
        raise DataError.listing("data-invalid", str(npz), checks.bounded(problems), FORMAT_HINT)
    return DataSet(
        name=content["name"],
        labels=tuple(content["labels"]),
        channels=tuple(Channel(entry["name"], entry["unit"]) for entry in content["channels"]),
        rate_hz=float(content["sampling_rate_hz"]),
        window=content["window"],
        stride=content["stride"],
        info={key: content[key] for key in content if key not in DERIVED | FIELDS},
        **{name: data[name] for name in ARRAYS},
    )


def write(dataset: DataSet, path: Path) -> None:
    """Write ``NAME.npz``, then ``NAME.json`` with its SHA-256 and counts; each is whole or absent.

    A crash between the two leaves a pair whose SHA-256 disagrees, which :func:`read` refuses.

    Raises:
        DataError: ``data-invalid`` when the data set breaks the format; nothing is written.
        StorageError: The disk refused.
    """
    npz, beside = _pair(path)
    data = {name: getattr(dataset, name) for name in ARRAYS}
    content = {
        "name": dataset.name,
        "labels": list(dataset.labels),
        "channels": [{"name": entry.name, "unit": entry.unit} for entry in dataset.channels],
        "sampling_rate_hz": dataset.rate_hz,
        "window": dataset.window,
        "stride": dataset.stride,
    }
    problems = _all_problems(content, data) + _info_problems(dataset.info)
    if problems:
        raise DataError.listing("data-invalid", dataset.name, checks.bounded(problems), FORMAT_HINT)
    with atomic_path(npz) as temporary:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **data)
        stated = {"file": npz.name, "sha256": _sha256(temporary), "bytes": temporary.stat().st_size}
    stated |= checks.counts(dataset.labels, data)
    seconds = {"window_seconds": round(dataset.window / dataset.rate_hz, 6)}
    write_json(beside, {"name": dataset.name, **stated, **content, **seconds, **dataset.info})


def _pair(path: Path) -> tuple[Path, Path]:
    stem = path.with_suffix("") if path.suffix in (".npz", ".json") else path
    return stem.with_name(f"{stem.name}.npz"), stem.with_name(f"{stem.name}.json")


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError("json-missing", f"the description {path} is missing", FORMAT_HINT)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise DataError("json-invalid", f"{path} cannot be read: {error}", FORMAT_HINT) from error
    if not isinstance(content, dict):
        raise DataError(
            "json-invalid",
            f"{path} must hold an object, not a {type(content).__name__}",
            FORMAT_HINT,
        )
    return content


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_UNPACKED_BYTES:
            raise ValueError(f"it unpacks to {unpacked} bytes; the limit is {MAX_UNPACKED_BYTES}")
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in ARRAYS if name in stored}
    except (ValueError, EOFError, OSError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise DataError(
                "data-pickled",
                f"{path} holds an object array, which would have to be unpickled",
                "Write plain numeric arrays; pickles are never read.",
            ) from error
        raise DataError(
            "data-corrupt",
            f"{path} is truncated, damaged or no npz file: {error}",
            "Fetch or convert it again: fleet data convert --help",
        ) from error


def _all_problems(content: Mapping[str, Any], data: Mapping[str, NDArray[Any]]) -> list[str]:
    return [
        *checks.description(content),
        *checks.arrays(data),
        *checks.agreement(content, data),
    ]


def _stated_problems(
    content: Mapping[str, Any], data: Mapping[str, NDArray[Any]], npz: Path, *, sound: bool
) -> list[str]:
    true: dict[str, Any] = {"bytes": npz.stat().st_size}
    if "sha256" in content:
        true["sha256"] = _sha256(npz)
    if sound:
        true |= checks.counts(content["labels"], data)
    return [
        f"the JSON says {key} = {_short(content[key])} but the npz holds {_short(true[key])}"
        for key in true
        if key in content and content[key] != true[key]
    ]


def _info_problems(info: Mapping[str, object]) -> list[str]:
    problems = [f"info must not redefine {key!r}" for key in info if key in DERIVED | FIELDS]
    try:
        json.dumps(dict(info), allow_nan=False)
    except (TypeError, ValueError) as error:
        problems.append(f"info must be plain JSON: {error}")
    return problems


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _sha256(path: Path) -> str:
    state = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            state.update(block)
    return state.hexdigest()
