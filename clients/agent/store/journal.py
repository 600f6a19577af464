"""The training journal: what a device was asked, what it did, and with whose windows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clients.agent.store.database import Database
from clients.agent.store.records import Caps, JournalEntry

__all__ = ["Journal"]

ROW_BYTES = 64  # what an entry takes beside its texts


class Journal:
    """Events of training jobs, the oldest dropped beyond the cap.

    Args:
        database: Where they are kept.
        caps: How many bytes they may hold.
        clock: Seconds since the epoch.
    """

    def __init__(self, database: Database, caps: Caps, clock: Callable[[], float]) -> None:
        self._database = database
        self._caps = caps
        self._clock = clock

    def add(
        self,
        plan: str,
        round: int,
        event: str,
        people: Iterable[str] = (),
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an entry.

        Args:
            plan: Id of the plan.
            round: Its round.
            event: E.g. ``started``, ``finished``, ``refused``.
            people: Whose windows take part.
            detail: Plain JSON.

        Raises:
            StorageError: Nothing was kept.
        """
        text = json.dumps(dict(detail or {}), allow_nan=False)
        size = ROW_BYTES + len(plan) + len(event) + len(text)
        with self._database.write() as connection:
            entry = connection.execute(
                "INSERT INTO journal (plan, round, event, at_s, detail, size)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (plan, round, event, self._clock(), text, size),
            ).lastrowid
            connection.executemany(
                "INSERT INTO journal_people VALUES (?, ?)", [(entry, one) for one in set(people)]
            )
            _drop_oldest(connection, self._caps.journal_bytes)

    def entries(self, plan: str | None = None, newest: int = 100) -> tuple[JournalEntry, ...]:
        """Return the last entries, of one plan or of all, the earliest first."""
        query = (
            "SELECT id, plan, round, event, at_s, detail FROM journal"
            " WHERE ?1 IS NULL OR plan = ?1 ORDER BY id DESC LIMIT ?2"
        )
        with self._database.read() as connection:
            rows = connection.execute(query, (plan, newest)).fetchall()[::-1]
            people = [
                connection.execute(
                    "SELECT person FROM journal_people WHERE entry = ? ORDER BY person", (row[0],)
                ).fetchall()
                for row in rows
            ]
        return tuple(
            JournalEntry(plan, number, event, at_s, tuple(one for (one,) in who), json.loads(text))
            for (_, plan, number, event, at_s, text), who in zip(rows, people, strict=True)
        )


def _drop_oldest(connection: sqlite3.Connection, cap_bytes: int) -> None:
    total = connection.execute("SELECT sum(size) FROM journal").fetchone()[0] or 0
    for row in connection.execute("SELECT id, size FROM journal ORDER BY id").fetchmany(1024):
        if total <= cap_bytes:
            return
        connection.execute("DELETE FROM journal WHERE id = ?", (row[0],))
        total -= row[1]
