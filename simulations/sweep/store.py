"""The results of a sweep in one SQLite file: one process writes it, any number may read it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, create_engine, delete, func, insert, select, update
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import NullPool

from fleet.config import RunConfig
from fleet.errors import InputError, StorageError
from simulations.engines import Engine
from simulations.sweep import schema
from simulations.sweep.cells import Cell
from simulations.sweep.outcome import Result, RoundPoint
from simulations.versions import machine, versions

__all__ = ["FILE", "Failure", "Kept", "Store"]

FILE = "results.sqlite"


@dataclass(frozen=True)
class Failure:
    """Why a cell has no result; the fields of a :class:`fleet.errors.FleetError`."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Kept:
    """A cell as the file has it.

    Args:
        cell: The cell.
        state: ``queued``, ``running``, ``done`` or ``failed``.
        failure: Why, when it failed.
        results: One per method, in order, when it is done.
        seconds: Wall time of the work that ended it, when it is done.
    """

    cell: Cell
    state: str
    failure: Failure | None
    results: tuple[Result, ...]
    seconds: float | None


class Store:
    """Reads and writes ``results.sqlite`` of a sweep's folder.

    Args:
        folder: The sweep's folder.
        writable: Make the file where there is none, and allow writing; else it must be there.

    Raises:
        InputError: ``no-sweep`` when there is none to read.
        StorageError: ``sweep-format`` for a file of another version, ``sweep-damaged``.
    """

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self.path = folder / FILE
        if not writable and not self.path.is_file():
            raise InputError(
                "no-sweep", f"{folder} holds no sweep ({FILE})", "Start one: fleet sweep --help"
            )
        if writable:
            folder.mkdir(parents=True, exist_ok=True)
        self._engine = create_engine(
            "sqlite://", creator=lambda: _connect(self.path, writable), poolclass=NullPool
        )
        with self._transaction() as connection:
            if writable and not _has_tables(connection):
                schema.METADATA.create_all(connection)
                connection.execute(insert(schema.sweep).values(_head()))
            self._check_format(connection)

    def add(self, cells: Sequence[Cell], title: str, axes: Iterable[str]) -> None:
        """Queue the cells that are not there yet; the title and axes are the last recipe's."""
        with self._transaction() as connection:
            connection.execute(update(schema.sweep).values(title=title, axes=list(axes)))
            known = set(connection.execute(select(schema.cells.c.id)).scalars())
            last = connection.execute(select(func.max(schema.cells.c.position))).scalar()
            rows = [_row_of(cell) for cell in cells if cell.id not in known]
            for position, row in enumerate(rows, 0 if last is None else last + 1):
                connection.execute(insert(schema.cells).values(row | {"position": position}))

    def requeue(self, state: str, cells: Iterable[Cell]) -> None:
        """Queue those of some cells again that are in a state."""
        blank = {"state": "queued", "error_code": "", "error": "", "hint": ""}
        table = schema.cells
        with self._transaction() as connection:
            for cell in cells:
                which = (table.c.id == cell.id) & (table.c.state == state)
                connection.execute(update(table).where(which).values(blank))

    def started(self, cell: str) -> None:
        """Mark a cell as running."""
        self._update(cell, {"state": "running"})

    def failed(self, cell: str, failure: Failure) -> None:
        """Keep why a cell failed."""
        error = {"error_code": failure.code, "error": failure.message, "hint": failure.hint}
        self._update(cell, {"state": "failed", **error})

    def done(self, cell: str, results: Sequence[Result], seconds: float) -> None:
        """Keep what a cell came to, whole or not at all."""
        with self._transaction() as connection:
            for table in (schema.results, schema.rounds):
                connection.execute(delete(table).where(table.c.cell == cell))
            for position, result in enumerate(results):
                row = asdict(result)
                ways = [{"cell": cell, "method": result.method, **r} for r in row.pop("rounds")]
                row |= {"cell": cell, "position": position}
                connection.execute(insert(schema.results).values(row))
                if ways:
                    connection.execute(insert(schema.rounds), ways)
            connection.execute(
                update(schema.cells)
                .where(schema.cells.c.id == cell)
                .values(state="done", seconds=seconds)
            )

    def about(self) -> tuple[str, tuple[str, ...]]:
        """Return the title and the axes of the last recipe."""
        with self._transaction() as connection:
            row = connection.execute(select(schema.sweep.c.title, schema.sweep.c.axes)).one()
        return row.title, tuple(row.axes)

    def kept(self) -> list[Kept]:
        """Return all cells, in the order in which they came."""
        with self._transaction() as connection:
            rows = connection.execute(select(schema.cells).order_by(schema.cells.c.position)).all()
            found = _results(connection)
        return [_kept(row, found.get(row.id, ())) for row in rows]

    def _update(self, cell: str, values: dict[str, str]) -> None:
        with self._transaction() as connection:
            connection.execute(update(schema.cells).where(schema.cells.c.id == cell).values(values))

    def _check_format(self, connection: Connection) -> None:
        found = connection.execute(select(schema.sweep.c.format)).scalars().first()
        if found != schema.FORMAT:
            raise StorageError(
                "sweep-format",
                f"{self.path} has the format {found}; this version reads {schema.FORMAT}",
                "Read it with the Corefleet that wrote it, or choose another --out.",
            )

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except DatabaseError as error:
            raise StorageError(
                "sweep-damaged",
                f"{self.path} is no whole sweep: {error.orig}",
                "Choose another --out; what the cells' folders hold is not lost.",
            ) from error


def _connect(path: Path, writable: bool) -> sqlite3.Connection:
    if not writable:
        return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    connection = sqlite3.connect(path)
    # Readers then see whole cells while the sweep goes on.
    connection.execute("PRAGMA journal_mode=WAL")
    return connection


def _has_tables(connection: Connection) -> bool:
    tables = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
    return bool(tables)


def _head() -> dict[str, Any]:
    return {
        "format": schema.FORMAT,
        "title": "",
        "axes": [],
        "created_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": machine(),
    }


def _row_of(cell: Cell) -> dict[str, Any]:
    return {
        "id": cell.id,
        "config": cell.config.for_flower(),
        "methods": list(cell.methods),
        "engine": cell.engine.value,
        "base_key": cell.base_key,
        "state": "queued",
    }


def _results(connection: Connection) -> dict[str, tuple[Result, ...]]:
    ways: dict[tuple[str, str], list[RoundPoint]] = {}
    ordered = select(schema.rounds).order_by(schema.rounds.c.round)
    for row in connection.execute(ordered).mappings():
        fields = {name: row[name] for name in RoundPoint.__dataclass_fields__}
        ways.setdefault((row["cell"], row["method"]), []).append(RoundPoint(**fields))
    found: dict[str, tuple[Result, ...]] = {}
    finals = select(schema.results).order_by(schema.results.c.position)
    for row in connection.execute(finals).mappings():
        fields = {n: row[n] for n in Result.__dataclass_fields__ if n != "rounds"}
        way = tuple(ways.get((row["cell"], row["method"]), ()))
        found[row["cell"]] = (*found.get(row["cell"], ()), Result(**fields, rounds=way))
    return found


def _kept(row: Row[Any], results: tuple[Result, ...]) -> Kept:
    config = RunConfig.parse(row.config)
    cell = Cell(row.id, config, tuple(row.methods), Engine(row.engine), row.base_key)
    failure = Failure(row.error_code, row.error, row.hint) if row.state == "failed" else None
    return Kept(cell, row.state, failure, results if row.state == "done" else (), row.seconds)
