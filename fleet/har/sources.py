"""Where data sets come from: a name, a path, an official download, or the built-in generator."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from fleet.errors import DataError
from fleet.har import checks, hapt, motionsense, synthetic, usc_had
from fleet.har.canonical import read
from fleet.har.dataset import DataSet

__all__ = [
    "CONVERTERS",
    "ENVIRONMENT",
    "Source",
    "available",
    "basic_labels",
    "default_name",
    "find",
    "folders",
    "locate",
    "path_of",
]

ENVIRONMENT = "FLEET_DATA"
SYNTHETIC = "synthetic"

# Generators by name; the second is for benchmarks and is found, but not listed.
BUILT_IN: dict[str, Callable[[], DataSet]] = {
    SYNTHETIC: synthetic.make,
    "synthetic:9x128": synthetic.make_nine,
}

CONVERTERS: dict[str, Callable[[Path], DataSet]] = {
    "hapt": hapt.load,
    "motionsense": motionsense.load,
    "usc_had": usc_had.load,
}
"""Loaders of official downloads, by data set name."""


@dataclass(frozen=True)
class Source:
    """A data set that can be named, described by its JSON alone (its arrays are not read).

    Attributes:
        name: What to ask :func:`find` for.
        path: The ``.npz``; ``None`` for the built-in generator.
        subjects: Number of people.
        windows: Number of windows.
        channels: Number of channels.
        rate_hz: Samples per second.
        classes: Number of labels.
        problem: Why the description cannot be used; the numbers are then 0. Empty otherwise.
    """

    name: str
    path: Path | None
    subjects: int = 0
    windows: int = 0
    channels: int = 0
    rate_hz: float = 0.0
    classes: int = 0
    problem: str = ""


def folders() -> tuple[Path, ...]:
    """Return the existing folders where names are looked up, first match first.

    Those of ``FLEET_DATA`` (separated like ``PATH``; each itself and its ``har`` folder), then
    ``shared/data/har`` in or beside the working folder, then in or beside the project.

    Raises:
        DataError: ``folder-missing`` when ``FLEET_DATA`` names a folder that is not there.
    """
    given = [Path(text) for text in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if text]
    absent = [str(folder) for folder in given if not folder.is_dir()]
    if absent:
        # Passing over a misspelt folder would run on other data than the user meant.
        raise DataError(
            "folder-missing",
            f"{ENVIRONMENT} names {', '.join(absent)}, which is no folder",
            f"Correct or unset {ENVIRONMENT}.",
        )
    asked = [place for folder in given for place in (folder, folder / "har")]
    project = Path(__file__).resolve().parents[2]
    roots = (Path(), Path(os.pardir), project, project.parent)
    candidates = [*asked, *(root / "shared" / "data" / "har" for root in roots)]
    unique = {folder.resolve(): folder for folder in reversed(candidates) if folder.is_dir()}
    return tuple(reversed(unique.values()))


def available() -> list[Source]:
    """Return every data set that :func:`find` knows by name; the built-in one comes last."""
    named: dict[str, Source] = {}
    for folder in folders():
        for path in sorted(folder.glob("*.npz")):
            if path.stem not in named and path.stem != SYNTHETIC:
                named[path.stem] = _describe(path)
    people, windows = synthetic.PEOPLE, synthetic.WINDOWS_PER_ACTIVITY
    classes = len(synthetic.ACTIVITIES)
    built_in = Source(
        SYNTHETIC, None, people, people * windows * classes, 6, synthetic.RATE_HZ, classes
    )
    return [*(named[name] for name in sorted(named)), built_in]


def path_of(name_or_path: str) -> Path | None:
    """Return the ``.npz`` that a text names as a path, there or not; None where it is a name.

    A path ends in ``.npz`` or ``.json``, or a file stands there once ``.npz`` is added. Built-in
    names are none, whatever files stand beside.
    """
    path = Path(name_or_path)
    if name_or_path in BUILT_IN:
        return None
    if path.suffix in (".npz", ".json"):
        return path.with_suffix(".npz")
    beside = Path(f"{path}.npz")
    return beside if beside.is_file() else None


def locate(name_or_path: str) -> Path | None:
    """Return the ``.npz`` that :func:`find` reads for a path or a name; None for a built-in set.

    Raises:
        DataError: ``data-unknown``, which lists the names and places; ``not-canonical`` for a
            download that must be converted first.
    """
    path = path_of(name_or_path)
    if path is not None or name_or_path in BUILT_IN:
        return path
    path = Path(name_or_path)
    if path.is_file():
        raise DataError(
            "not-canonical",
            f"{path} is not a canonical data set (.npz with .json)",
            f"Convert an official download: fleet data convert {{{','.join(CONVERTERS)}}} {path}"
            " --out NAME.npz",
        )
    for folder in folders():
        if path.name == name_or_path and (folder / f"{path.name}.npz").is_file():
            return folder / f"{path.name}.npz"
    places = ", ".join(str(folder) for folder in folders()) or "no existing folder"
    raise DataError(
        "data-unknown",
        f"there is no data set {name_or_path!r}; known are"
        f" {', '.join(source.name for source in available())} (looked in: {places})",
        f"Give the path of a .npz file, or set {ENVIRONMENT} to the folder that holds it.",
    )


def find(name_or_path: str) -> DataSet:
    """Return a data set by its path or its name.

    Args:
        name_or_path: ``synthetic`` or ``synthetic:9x128``, an existing canonical file (``.npz``,
            ``.json``, or without its suffix), or a name that is looked up in :func:`folders`.

    Raises:
        DataError: See :func:`locate`, or what reading the file brings to light.
    """
    path = locate(name_or_path)
    return _generated(name_or_path) if path is None else read(path)


@lru_cache(maxsize=1)
def _generated(name: str) -> DataSet:
    """Generate a data set once; as of a file, nobody may write into its arrays."""
    dataset = BUILT_IN[name]()
    for value in vars(dataset).values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    return dataset


def default_name() -> str:
    """Return ``hapt`` where it is at hand, else ``synthetic``."""
    here = any((folder / "hapt.npz").is_file() for folder in folders())
    return "hapt" if here else SYNTHETIC


def basic_labels(dataset: DataSet) -> tuple[str, ...]:
    """Return the labels of everyday use: HAPT's six basic ones, otherwise all."""
    if dataset.name == "hapt" and set(hapt.BASIC_LABELS) <= set(dataset.labels):
        return hapt.BASIC_LABELS
    return dataset.labels


def _describe(path: Path) -> Source:
    beside = path.with_suffix(".json")
    try:
        content: Any = json.loads(beside.read_text(encoding="utf-8"))
        problems = checks.description(content) if isinstance(content, dict) else ["not an object"]
    except (OSError, ValueError, RecursionError) as error:
        return Source(path.stem, path, problem=f"{beside.name} cannot be read: {error}")
    if problems:
        return Source(path.stem, path, problem="; ".join(problems))
    counts = [content.get("n_subjects"), content.get("n_windows")]
    subjects, windows = (count if isinstance(count, int) else 0 for count in counts)
    return Source(
        name=path.stem,
        path=path,
        subjects=subjects,
        windows=windows,
        channels=len(content["channels"]),
        rate_hz=float(content["sampling_rate_hz"]),
        classes=len(content["labels"]),
    )
