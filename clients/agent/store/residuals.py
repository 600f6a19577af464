"""What compression has lost of this device's updates, to be added to the next one."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterable

from clients.agent.store.database import Database

__all__ = ["LARGEST_RESIDUAL_BYTES", "ResidualTable"]

LARGEST_RESIDUAL_BYTES = 32 << 20
"""A larger one is not kept: what that update lost is lost."""


class ResidualTable:
    """At most one residual, for one base, frames and layout.

    Args:
        database: Where it is kept.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, key: str, payload: bytes, people: Iterable[str]) -> bool:
        """Keep a residual in the place of whatever was kept, in its update's transaction.

        Args:
            key: What it belongs to; for anything else it is dropped.
            payload: Its bytes.
            people: Whose windows shaped it, now or before.

        Returns:
            Whether it was kept: False beyond :data:`LARGEST_RESIDUAL_BYTES`.

        Raises:
            StorageError: Nothing was kept; the one before stays.
        """
        with self._database.write() as connection:
            before = connection.execute(
                "SELECT person FROM residual_people WHERE key = ?", (key,)
            ).fetchall()
            _clear(connection)
            if len(payload) > LARGEST_RESIDUAL_BYTES:
                return False
            row = (key, zlib.crc32(payload), payload)
            connection.execute("INSERT INTO residuals VALUES (?, ?, ?)", row)
            # What a person's windows lost stays in the sum until it is forgotten.
            whose = set(people) | {person for (person,) in before}
            connection.executemany(
                "INSERT INTO residual_people VALUES (?, ?)", [(key, one) for one in sorted(whose)]
            )
        return True

    def get(self, key: str) -> bytes | None:
        """Return the residual of a key; None when none of it is whole."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT payload, crc FROM residuals WHERE key = ?", (key,)
            ).fetchone()
        return bytes(row[0]) if row and zlib.crc32(row[0]) == row[1] else None

    def clear(self) -> bool:
        """Drop the residual; tells whether there was one."""
        with self._database.write() as connection:
            return _clear(connection)


def _clear(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("DELETE FROM residuals").rowcount)
