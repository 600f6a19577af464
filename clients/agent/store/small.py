"""The small tables: counters, named values, and how far each source was taken in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from clients.agent.store.database import Database
from clients.agent.store.records import Position

__all__ = ["LARGEST_SOURCES", "Counters", "Positions", "State"]

LARGEST_SOURCES = 1000


class Counters:
    """Numbers that only grow, e.g. ``intake.gaps``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, amounts: Mapping[str, int]) -> None:
        """Add to several counters at once."""
        with self._database.write() as connection:
            connection.executemany(
                "INSERT INTO counters VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                [(name, int(amount)) for name, amount in amounts.items() if amount],
            )

    def all(self) -> dict[str, int]:
        """Return every counter by name."""
        with self._database.read() as connection:
            rows = connection.execute("SELECT name, value FROM counters ORDER BY name").fetchall()
        return {name: int(value) for name, value in rows}


class State:
    """Values by name, plain JSON."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, key: str, value: Any) -> None:
        """Set a value."""
        text = json.dumps(value, allow_nan=False)
        with self._database.write() as connection:
            connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, text))

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or ``default`` where it was never set."""
        with self._database.read() as connection:
            row = connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return default if row is None else json.loads(row[0])


class Positions:
    """How far each source of each person was taken in; the last :data:`LARGEST_SOURCES` of them.

    Args:
        database: Where they are kept.
        clock: Seconds since the epoch.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def put(self, person: str, source: str, position: Position) -> None:
        """Set a position, in the transaction that adds what lies before it."""
        row = (person, source, position.offset, position.prefix, position.state, self._clock())
        with self._database.write() as connection:
            connection.execute("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?, ?, ?)", row)
            # A source that is taken in again after this gives windows that the store knows.
            connection.execute(
                "DELETE FROM positions WHERE (person, source) IN (SELECT person, source"
                " FROM positions ORDER BY touched_s DESC LIMIT -1 OFFSET ?)",
                (LARGEST_SOURCES,),
            )

    def get(self, person: str, source: str) -> Position | None:
        """Return a position; None for a source that was never seen."""
        query = "SELECT offset, prefix, state FROM positions WHERE person = ? AND source = ?"
        with self._database.read() as connection:
            row = connection.execute(query, (person, source)).fetchone()
        return None if row is None else Position(int(row[0]), bytes(row[1]), str(row[2]))
