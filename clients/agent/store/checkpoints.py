"""Checkpoints: how far a training under way has come, so that a killed one can go on."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable
from typing import Literal

from clients.agent.store.database import Database

__all__ = ["LARGEST_CHECKPOINT_BYTES", "Checkpoints"]

LARGEST_CHECKPOINT_BYTES = 32 << 20
"""A larger one is not kept: that training starts again from its plan."""


class Checkpoints:
    """At most one checkpoint: a device trains for one plan at a time.

    Args:
        database: Where it is kept.
        clock: Seconds since the epoch.
        prefix: Of its tables: ``""`` for plans, ``"personal_"`` for private cores.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        prefix: Literal["", "personal_"] = "",
    ) -> None:
        self._database = database
        self._clock = clock
        self._table, self._people = f"{prefix}checkpoints", f"{prefix}checkpoint_people"

    def put(self, plan: str, windows: str, payload: bytes, people: Iterable[str]) -> bool:
        """Keep a plan's checkpoint in the place of whatever was kept.

        Args:
            plan: Id of the plan.
            windows: Digest of the windows trained on; with others the training may not go on.
            payload: The training's own bytes.
            people: Whose windows shaped it.

        Returns:
            Whether it was kept: False beyond :data:`LARGEST_CHECKPOINT_BYTES`.

        Raises:
            StorageError: Nothing was kept; the one before stays.
        """
        if len(payload) > LARGEST_CHECKPOINT_BYTES:
            return False
        with self._database.write() as connection:
            self._clear(connection)
            row = (plan, self._clock(), windows, zlib.crc32(payload), payload)
            connection.execute(f"INSERT INTO {self._table} VALUES (?, ?, ?, ?, ?)", row)
            connection.executemany(
                f"INSERT INTO {self._people} VALUES (?, ?)", [(plan, one) for one in set(people)]
            )
        return True

    def get(self, plan: str, windows: str) -> bytes | None:
        """Return the checkpoint of a plan on these windows; None when none is whole."""
        query = f"SELECT payload, crc FROM {self._table} WHERE plan = ? AND windows = ?"
        with self._database.read() as connection:
            row = connection.execute(query, (plan, windows)).fetchone()
        return bytes(row[0]) if row and zlib.crc32(row[0]) == row[1] else None

    def plan(self) -> str | None:
        """Return the id of the plan whose checkpoint is kept."""
        with self._database.read() as connection:
            row = connection.execute(f"SELECT plan FROM {self._table}").fetchone()
        return str(row[0]) if row else None

    def clear(self) -> bool:
        """Drop the checkpoint; tells whether there was one."""
        with self._database.write() as connection:
            return self._clear(connection)

    def _clear(self, connection: sqlite3.Connection) -> bool:
        return bool(connection.execute(f"DELETE FROM {self._table}").rowcount)
