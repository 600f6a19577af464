"""Windows and labels as they came: past a cursor, once and in order; or spread over the newest."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from clients.agent.store.database import Database
from clients.agent.store.labels import EDGE_S
from clients.agent.store.records import Loaded
from clients.agent.store.windows import COLUMNS, loaded_of

__all__ = [
    "LabelCursor",
    "count_after",
    "labelled_after",
    "spread",
    "windows_after",
    "windows_of",
]

Row = tuple[Any, ...]

_OURS = "channels = ? AND samples = ?"
# Values of one query; SQLite of before 2020 takes 999.
_AT_ONCE = 500


@dataclass(frozen=True)
class LabelCursor:
    """How far labelled windows were gone through; a label may come with its window or long after.

    Args:
        window: Id up to which windows were looked at as they came.
        statement: Id up to which what was said of those windows was gone through.
        within: Of the statement that follows: id up to which its windows were.
    """

    window: int = 0
    statement: int = 0
    within: int = 0


def count_after(
    database: Database, shape: tuple[int, int], after: int, most: int | None = None
) -> int:
    """Return how many windows of a shape came after that one; it reads at most ``most`` of them."""
    found = f"SELECT 1 FROM windows WHERE id > ? AND {_OURS} LIMIT ?"
    limit = -1 if most is None else most
    return database.number(f"SELECT count(*) FROM ({found})", (after, *shape, limit))


def windows_after(
    database: Database, shape: tuple[int, int], after: int, most: int
) -> tuple[Loaded, int]:
    """Return windows in the order of their arrival.

    Args:
        database: The store's.
        shape: ``(channels, samples)``; others are left out.
        after: Id of the last window that was seen; 0 from the first that is kept.
        most: At most so many.

    Returns:
        The windows, and the id to go on after: damaged ones are passed over.
    """
    query = f"SELECT {COLUMNS} FROM windows WHERE id > ? AND {_OURS} ORDER BY id LIMIT ?"
    with database.read() as connection:
        rows = connection.execute(query, (after, *shape, most)).fetchall()
    return loaded_of(rows, shape), int(rows[-1][0]) if rows else after


def spread(database: Database, shape: tuple[int, int], most: int, over: int) -> tuple[Loaded, int]:
    """Return windows spread evenly over the newest, in the order of their arrival.

    Args:
        database: The store's.
        shape: ``(channels, samples)``; others are left out.
        most: At most so many; the newest is one of them. Damaged ones are left out.
        over: Of so many of the newest, where there are as many.

    Returns:
        The windows, and over how many they are spread.
    """
    query = f"SELECT id FROM windows WHERE {_OURS} ORDER BY id DESC LIMIT ?"
    with database.read() as connection:
        ids = [int(row[0]) for row in connection.execute(query, (*shape, over))]
        rows = _rows_of(connection, shape, ids[:: max(1, len(ids) // most)][:most][::-1])
    return loaded_of(rows, shape), len(ids)


def windows_of(database: Database, shape: tuple[int, int], ids: Sequence[int]) -> Loaded:
    """Return the windows of some ids, ascending; those that are gone or damaged are left out.

    Args:
        database: The store's.
        shape: ``(channels, samples)``; others are left out.
        ids: Ascending.
    """
    with database.read() as connection:
        return loaded_of(_rows_of(connection, shape, ids), shape)


def _rows_of(
    connection: sqlite3.Connection, shape: tuple[int, int], ids: Sequence[int]
) -> list[Row]:
    rows: list[Row] = []
    for first in range(0, len(ids), _AT_ONCE):
        part = ids[first : first + _AT_ONCE]
        places = ", ".join("?" * len(part))
        rows += connection.execute(
            f"SELECT {COLUMNS} FROM windows WHERE id IN ({places}) AND {_OURS} ORDER BY id",
            (*part, *shape),
        )
    return rows


def labelled_after(
    database: Database, shape: tuple[int, int], cursor: LabelCursor, most: int
) -> tuple[Loaded, LabelCursor]:
    """Return windows whose label became known, in the order in which it did.

    First what was said since of windows that had come before, statement by statement; then windows
    that came since with a label. A window comes again when its label is corrected.

    Args:
        database: The store's.
        shape: ``(channels, samples)``; others are left out.
        cursor: Where the last call ended.
        most: At most so many windows, and so many statements.

    Returns:
        The windows, and the cursor to go on from; the same one when there is nothing more.
    """
    # For writing, so that nobody labels a window between the two looks.
    with database.write() as connection:
        said, moved = _said(connection, shape, cursor, most)
        if moved != cursor:
            return loaded_of(said, shape), moved
        query = (
            f"SELECT {COLUMNS} FROM windows WHERE id > ? AND label IS NOT NULL AND {_OURS}"
            " ORDER BY id LIMIT ?"
        )
        rows = connection.execute(query, (cursor.window, *shape, most)).fetchall()
        if len(rows) == most:
            return loaded_of(rows, shape), replace(cursor, window=int(rows[-1][0]))
        newest = int(connection.execute("SELECT max(id) FROM windows").fetchone()[0] or 0)
        return loaded_of(rows, shape), replace(cursor, window=max(newest, cursor.window))


def _said(
    connection: sqlite3.Connection, shape: tuple[int, int], cursor: LabelCursor, most: int
) -> tuple[list[Row], LabelCursor]:
    """Return rows of windows that statements after the cursor label, and where they end."""
    found: list[Row] = []
    statements = connection.execute(
        "SELECT id, label, person, window, from_s, to_s FROM statements WHERE id > ?"
        " ORDER BY id LIMIT ?",
        (cursor.statement, most),
    ).fetchall()
    for number, label, person, window, from_s, to_s in statements:
        where, values = "id = ?", list[object]([window])
        if window is None:
            where = "person = ? AND start_s >= ? AND end_s <= ?"
            values = [person, from_s - EDGE_S, to_s + EDGE_S]
        room = most - len(found)
        # What a later statement says otherwise comes with that one.
        query = (
            f"SELECT {COLUMNS} FROM windows WHERE label = ? AND id > ? AND id <= ? AND {_OURS}"
            f" AND {where} ORDER BY id LIMIT ?"
        )
        bounds = (label, cursor.within, cursor.window, *shape)
        rows = connection.execute(query, (*bounds, *values, room)).fetchall()
        found += rows
        if len(rows) == room:
            last = int(rows[-1][0]) if rows else cursor.within
            return found, replace(cursor, within=last)
        cursor = replace(cursor, statement=int(number), within=0)
    return found, cursor
