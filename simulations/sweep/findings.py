"""What a sweep, or runs beside each other, came to: one entry per cell and method, and groups.

Groups are the combinations of all keys that differ between entries, but for the seed; a group's
entries differ in the seed alone, and their mean and spread are what a report shows.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet.config import RunConfig
from fleet.errors import InputError
from server.store import read_json
from simulations.engines import Engine
from simulations.sweep.outcome import Result, read_result
from simulations.sweep.recipe import KEYS, Scalar
from simulations.sweep.store import FILE, Failure, Kept, Store

__all__ = ["Entry", "Findings", "Group", "Unfinished", "findings_of", "label", "read_findings"]

ORDER = ("method", *(key for key in KEYS if key != "method"), "engine")
Values = Mapping[str, Scalar]


@dataclass(frozen=True, eq=False)
class Entry:
    """One method of one cell or run.

    Args:
        cell: The cell's id, or the run's folder.
        values: Configuration by key, with ``method`` and ``engine``.
        result: What it came to.
    """

    cell: str
    values: Values
    result: Result


@dataclass(frozen=True, eq=False)
class Unfinished:
    """A cell without a result.

    Args:
        cell: Its id.
        values: Configuration by key.
        state: ``queued``, ``running`` or ``failed``.
        failure: Why it failed, if it did.
    """

    cell: str
    values: Values
    state: str
    failure: Failure | None


@dataclass(frozen=True, eq=False)
class Group:
    """Entries that differ in the seed alone.

    Args:
        values: What sets it apart, by axis.
        entries: Its entries, by seed.
    """

    values: Values
    entries: tuple[Entry, ...]

    @property
    def label(self) -> str:
        """Name it by its values."""
        return label(self.values)

    @property
    def scores(self) -> list[float]:
        """Final pooled macro-F1 of the entries that have one, by seed."""
        scores = (entry.result.macro_f1 for entry in self.entries)
        return [score for score in scores if score is not None]

    @property
    def mean(self) -> float | None:
        """Mean of the final pooled macro-F1."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over seeds; None with fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def known(self, name: str) -> list[float]:
        """Return a number of the results, e.g. ``bytes_up``, of those that have it, by seed."""
        found = (getattr(entry.result, name) for entry in self.entries)
        return [float(value) for value in found if value is not None]

    def average(self, name: str) -> float | None:
        """Return the mean of a number of the results; None without any."""
        known = self.known(name)
        return statistics.fmean(known) if known else None


@dataclass(frozen=True, eq=False)
class Findings:
    """What a report is made of.

    Args:
        title: Of the report.
        source: Folders that it was read from.
        axes: Keys that differ between cells, but for the seed.
        entries: Finished.
        unfinished: Cells without a result.
    """

    title: str
    source: tuple[str, ...]
    axes: tuple[str, ...]
    entries: tuple[Entry, ...]
    unfinished: tuple[Unfinished, ...]

    def groups(self) -> list[Group]:
        """Return the groups, in the order in which their first entries came."""
        found: dict[tuple[Scalar, ...], list[Entry]] = {}
        for entry in self.entries:
            key = tuple(entry.values.get(axis, "") for axis in self.axes)
            found.setdefault(key, []).append(entry)
        return [
            Group(
                dict(zip(self.axes, key, strict=True)),
                tuple(sorted(entries, key=lambda e: int(e.values["seed"]))),
            )
            for key, entries in found.items()
        ]

    @property
    def seeds(self) -> list[int]:
        """All seeds, ascending."""
        return sorted({int(entry.values["seed"]) for entry in self.entries})

    @property
    def common(self) -> dict[str, Scalar]:
        """What all entries share, by key."""
        first = self.entries[0].values if self.entries else {}
        return {k: v for k, v in first.items() if k not in (*self.axes, "seed")}


def label(values: Values) -> str:
    """Name a combination of values in one line."""
    return " · ".join(f"{key} {_shown(value)}" for key, value in values.items()) or "all"


def findings_of(
    title: str,
    source: Iterable[str],
    first: Sequence[str],
    entries: Sequence[Entry],
    unfinished: Sequence[Unfinished] = (),
) -> Findings:
    """Put entries together and find their axes.

    Args:
        title: Of the report.
        source: Folders.
        first: Keys whose axes come first.
        entries: Finished.
        unfinished: Cells without a result.
    """
    everything = [e.values for e in entries] + [u.values for u in unfinished]
    named = tuple(
        key
        for key in dict.fromkeys((*first, *ORDER))
        if key != "seed" and len({values.get(key) for values in everything}) > 1
    )
    return Findings(title, tuple(source), named, tuple(entries), tuple(unfinished))


def read_findings(paths: Sequence[Path]) -> Findings:
    """Read a sweep's folder, or one or several folders of runs.

    Raises:
        InputError: ``nothing-to-report`` for a folder that holds neither, or several of which one
            is a sweep's.
        StorageError: For a damaged file, or one of another version.
    """
    if len(paths) == 1 and (paths[0] / FILE).is_file():
        store = Store(paths[0], writable=False)
        title, axes = store.about()
        return _of_sweep(title, axes, store.kept(), paths[0])
    entries: list[Entry] = []
    for path in paths:
        if not (path / "report.json").is_file():
            raise InputError(
                "nothing-to-report",
                f"{path} holds no sweep and no finished run",
                "Give the --out of one `fleet sweep`, or of one or more `fleet simulate`.",
            )
        entries += _of_run(path)
    return findings_of(", ".join(path.name for path in paths), map(str, paths), (), entries)


def _of_sweep(title: str, axes: Sequence[str], kept: Sequence[Kept], path: Path) -> Findings:
    entries = [
        Entry(each.cell.id, each.cell.values() | {"method": result.method}, result)
        for each in kept
        for result in each.results
    ]
    unfinished = [
        Unfinished(each.cell.id, each.cell.values(), each.state, each.failure)
        for each in kept
        if each.state != "done"
    ]
    return findings_of(title, [str(path)], axes, entries, unfinished)


def _of_run(path: Path) -> list[Entry]:
    record, report = read_json(path / "run.json"), read_json(path / "report.json")
    config = RunConfig.parse(record["config"] | {"out": ""}).for_flower()
    values = {key: value for key, value in config.items() if key != "out"}
    values["engine"] = str(record.get("engine", Engine.loop.value))
    digest = report["base"]["digest"]
    return [
        Entry(str(path), values | {"method": name}, read_result(path, name, digest))
        for name in report["methods"]
    ]


def _shown(value: Scalar) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return Path(text).stem if text.endswith((".npz", ".safetensors")) else text or '""'
