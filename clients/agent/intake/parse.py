"""Lines to numbers: CSV with a header, and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.agent.intake.spec import TIME_UNITS, IntakeSpec
from fleet.errors import DataError

__all__ = ["Chunk", "CsvParser", "JsonParser"]

Array = NDArray[np.float64]
DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True, eq=False)
class Chunk:
    """Samples as a source gave them.

    Attributes:
        times: float64 ``(n,)``, seconds since the epoch.
        values: float64 ``(n, c)``, in the source's units, columns as in the spec.
        malformed: Lines that hold no sample.
    """

    times: Array
    values: Array
    malformed: int


class JsonParser:
    """Reads one JSON object per line: the time and every column by name.

    >>> spec = IntakeSpec(columns=("a",), factors=(1.0,), rate_hz=50.0, window=2, stride=1)
    >>> JsonParser(spec)([b'{"time": 0.5, "a": 1}', b"no sample"]).values.tolist()
    [[1.0]]
    """

    def __init__(self, spec: IntakeSpec) -> None:
        self._names = (spec.time_column, *spec.columns)
        self._unit = TIME_UNITS[spec.time_unit]

    def __call__(self, lines: Sequence[bytes]) -> Chunk:
        """Read lines; one that lacks a number counts as malformed."""
        rows = [row for row in map(self._row, lines) if row is not None]
        table = np.array(rows, dtype=np.float64).reshape(len(rows), len(self._names))
        return _chunk(table, self._unit, len(lines) - len(rows))

    def _row(self, line: bytes) -> list[float] | None:
        try:
            content = json.loads(line)
            row = [content[name] for name in self._names]
            if any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in row):
                return None
            return [float(one) for one in row]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None


class CsvParser:
    """Reads CSV rows by the names in the header; further columns are passed over.

    Args:
        spec: Names the time and the columns.
        header: The first line; comma, semicolon or tabulator between the names.
        name: Of the file, for messages.

    Raises:
        DataError: ``columns-missing`` with every column that the header lacks.
    """

    def __init__(self, spec: IntakeSpec, header: bytes, name: str) -> None:
        text = header.decode("utf-8-sig", errors="replace")
        self._delimiter = max(DELIMITERS, key=text.count)
        found = [one.strip().strip('"') for one in text.split(self._delimiter)]
        names = (spec.time_column, *spec.columns)
        missing = [one for one in names if one not in found]
        if missing:
            raise DataError.listing(
                "columns-missing",
                name,
                [f"no column {one!r}" for one in missing],
                f"Its header names {', '.join(found)[:300]}. Map columns under [intake] in"
                " device.toml; name the time with --time.",
            )
        self._places = [found.index(one) for one in names]
        self._unit = TIME_UNITS[spec.time_unit]

    def __call__(self, lines: Sequence[bytes]) -> Chunk:
        """Read rows; one that lacks a number counts as malformed."""
        texts = [line.decode("utf-8", errors="replace") for line in lines]
        tables = self._tables(texts)
        table = np.concatenate([np.empty((0, len(self._places))), *tables])
        return _chunk(table, self._unit, len(lines) - len(table))

    def _tables(self, texts: list[str]) -> list[Array]:
        """Parse rows at once; where that fails, halve them until the bad ones are alone."""
        if not texts:
            return []
        try:
            table = np.loadtxt(
                texts,
                delimiter=self._delimiter,
                usecols=self._places,
                comments=None,
                quotechar='"',
                ndmin=2,
            )
        except ValueError:
            if len(texts) == 1:
                return []
            middle = len(texts) // 2
            return self._tables(texts[:middle]) + self._tables(texts[middle:])
        return [table]


def _chunk(table: Array, unit: float, malformed: int) -> Chunk:
    # Divided, not multiplied by a rounded 1e-3: 20 ms must give the double nearest to 0.02 s.
    times = table[:, 0] / unit
    return Chunk(times, np.ascontiguousarray(table[:, 1:]), malformed)
