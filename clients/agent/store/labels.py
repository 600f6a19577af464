"""Labels: they come late, by window or by a range of time, and may be corrected.

Every statement is kept with who made it and when; a window's label is what the last statement about
it says. A range also counts for windows that arrive after it was stated.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable

from clients.agent.store.database import Database
from clients.agent.store.eviction import evict_windows
from clients.agent.store.records import Caps, Statement
from fleet.errors import InputError

__all__ = ["EDGE_S", "LabelTable"]

EDGE_S = 1e-3
"""How far a window may stick out of a range: times are rounded in files and by people."""
ROW_BYTES = 64  # what a statement takes beside its texts
LARGEST_TEXT = 200

_INSERT = (
    "INSERT OR IGNORE INTO statements"
    " (person, window, from_s, to_s, label, author, said_s, key, size)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class LabelTable:
    """What was said about labels.

    Args:
        database: Where it is kept.
        caps: How many bytes the statements may hold.
        clock: Seconds since the epoch.
    """

    def __init__(self, database: Database, caps: Caps, clock: Callable[[], float]) -> None:
        self._database = database
        self._caps = caps
        self._clock = clock

    def range(
        self,
        person: str,
        from_s: float,
        to_s: float,
        label: str | None,
        author: str,
        key: str | None = None,
    ) -> int:
        """Label the person's windows that lie in a range of time, also those still to come.

        Args:
            person: Who wore the sensor.
            from_s: Seconds since the epoch.
            to_s: Likewise, later.
            label: Class name; None takes labels back.
            author: Who says so.
            key: Names the statement; a key that was used before changes nothing.

        Returns:
            How many windows of the store it labels now.

        Raises:
            InputError: ``bad-range`` or ``bad-label``.
            StorageError: Nothing was kept.
        """
        if not (math.isfinite(from_s) and math.isfinite(to_s) and from_s < to_s):
            raise InputError("bad-range", f"a range must end after it starts: {from_s} to {to_s}")
        where = "person = ? AND start_s >= ? AND end_s <= ?"
        values = (person, from_s - EDGE_S, to_s + EDGE_S)
        row = (person, None, from_s, to_s, label, author, self._clock(), key)
        return self._state(row, where, values)

    def window(self, window: int, label: str | None, author: str, key: str | None = None) -> int:
        """Label one window by its id, see :meth:`range`.

        Raises:
            InputError: ``no-such-window`` or ``bad-label``.
            StorageError: Nothing was kept.
        """
        with self._database.write() as connection:
            row = connection.execute(
                "SELECT person FROM windows WHERE id = ?", (window,)
            ).fetchone()
            if row is None:
                raise InputError(
                    "no-such-window",
                    f"the store has no window {window}; it never had, or it made room",
                    "Label by range of time instead: fleet-device label --help",
                )
            stated = (row[0], window, None, None, label, author, self._clock(), key)
            return self._state(stated, "id = ?", (window,))

    def history(self, window: int) -> tuple[Statement, ...]:
        """Return every statement about a window, the earliest first; the last one holds."""
        query = (
            "SELECT s.label, s.author, s.said_s, s.window, s.from_s, s.to_s"
            " FROM statements s JOIN windows w ON w.id = ? AND s.person = w.person"
            " WHERE s.window = w.id OR (s.from_s - ? <= w.start_s AND w.end_s <= s.to_s + ?)"
            " ORDER BY s.id"
        )
        with self._database.read() as connection:
            rows = connection.execute(query, (window, EDGE_S, EDGE_S)).fetchall()
        return tuple(Statement(*row) for row in rows)

    def mark(self) -> tuple[int, int]:
        """Return how far labelling has come: the newest window's id and the newest statement's."""
        number = self._database.number
        return number("SELECT max(id) FROM windows"), number("SELECT max(id) FROM statements")

    def since(self, mark: tuple[int, int]) -> int:
        """Count what was labelled after a mark: windows that came with a label, and statements."""
        arrived = "SELECT count(*) FROM windows WHERE label IS NOT NULL AND id > ?"
        said = "SELECT count(*) FROM statements WHERE label IS NOT NULL AND id > ?"
        number = self._database.number
        return number(arrived, (mark[0],)) + number(said, (mark[1],))

    def _state(self, row: tuple[object, ...], where: str, values: tuple[object, ...]) -> int:
        label, author = row[4], row[5]
        for text in (label, author):
            if text is not None and not 1 <= len(str(text).strip()) <= LARGEST_TEXT:
                raise InputError(
                    "bad-label",
                    f"label and author must have 1 to {LARGEST_TEXT} characters, not {text!r}",
                )
        size = ROW_BYTES + len(str(label or "")) + len(str(author)) + len(str(row[0]))
        with self._database.write() as connection:
            if not connection.execute(_INSERT, (*row, size)).rowcount:
                return 0
            changed = connection.execute(
                f"UPDATE windows SET label = ? WHERE {where}", (label, *values)
            ).rowcount
            _drop_oldest(connection, self._caps.labels_bytes)
            # What was taken back counts as unlabelled again, which has a cap of its own.
            evict_windows(connection, self._caps)
        return changed


def _drop_oldest(connection: sqlite3.Connection, cap_bytes: int) -> None:
    """Drop the oldest statements beyond the cap; windows keep the labels these gave."""
    total = connection.execute("SELECT sum(size) FROM statements").fetchone()[0] or 0
    for row in connection.execute("SELECT id, size FROM statements ORDER BY id").fetchmany(1024):
        if total <= cap_bytes:
            return
        connection.execute("DELETE FROM statements WHERE id = ?", (row[0],))
        total -= row[1]
