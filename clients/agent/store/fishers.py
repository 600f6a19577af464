"""The Fisher information of this device's trainings: which entries of a core state they lean on."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from clients.agent.store.database import Database
from fleet.errors import StorageError

__all__ = ["LARGEST_FISHER_BYTES", "FisherTable"]

LARGEST_FISHER_BYTES = 32 << 20
"""A larger one is not kept: the method trains more than cores."""


class FisherTable:
    """At most one, for one base, frames and layout.

    Args:
        database: Where it is kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, key: str, payload: bytes, people: Iterable[str]) -> bool:
        """Keep one in the place of whatever was kept, in its update's transaction.

        Args:
            key: What it belongs to; for anything else it is void.
            payload: Its bytes.
            people: Whose windows shaped it, now or before.

        Returns:
            Whether it was kept: False beyond :data:`LARGEST_FISHER_BYTES`.

        Raises:
            StorageError: Nothing was kept; the one before stays.
        """
        with self._database.write() as connection:
            connection.execute("DELETE FROM fishers")
            if len(payload) > LARGEST_FISHER_BYTES:
                return False
            row = (key, zlib.crc32(payload), payload)
            connection.execute("INSERT INTO fishers VALUES (?, ?, ?)", row)
            connection.executemany(
                "INSERT INTO fisher_people VALUES (?, ?)",
                [(key, one) for one in sorted(set(people))],
            )
        return True

    def get(self, key: str) -> tuple[bytes, frozenset[str]] | None:
        """Return the one of a key, and whose windows shaped it; None where there is none.

        Raises:
            StorageError: ``fisher-damaged`` when it is not whole.
        """
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT payload, crc FROM fishers WHERE key = ?", (key,)
            ).fetchone()
            people = connection.execute(
                "SELECT person FROM fisher_people WHERE key = ?", (key,)
            ).fetchall()
        if row is None:
            return None
        if not isinstance(row[0], bytes) or zlib.crc32(row[0]) != row[1]:
            raise StorageError("fisher-damaged", "the Fisher information is not whole", "")
        return row[0], frozenset(person for (person,) in people)

    def clear(self) -> bool:
        """Drop it; tells whether there was one."""
        with self._database.write() as connection:
            return bool(connection.execute("DELETE FROM fishers").rowcount)
