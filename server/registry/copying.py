"""Copies of SQLite databases that others go on using."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

__all__ = ["BUSY_S", "copy_database"]

BUSY_S = 10.0
"""How long a copy waits for somebody who keeps the whole database to himself."""
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def copy_database(
    source: Path,
    target: Path,
    limit_s: float = BUSY_S,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Copy a database as of one moment into one file, with no log beside it; writers go on.

    Args:
        source: The database; only read.
        target: A file that is empty or not there.
        limit_s: See :data:`BUSY_S`.
        monotonic: A clock, seconds.

    Raises:
        sqlite3.Error: What SQLite raises; ``database is locked`` after the limit.
    """
    until = monotonic() + limit_s

    def still(status: int, remaining: int, total: int) -> None:
        # The connection's own timeout does not end a backup: CPython tries again for ever.
        if status in _BUSY and monotonic() > until:
            raise sqlite3.OperationalError("database is locked")

    uri = f"{source.absolute().as_uri()}?mode=ro"
    with (
        closing(sqlite3.connect(uri, uri=True, timeout=limit_s)) as there,
        closing(sqlite3.connect(target)) as copy,
    ):
        there.backup(copy, progress=still)
        # Else a copy of the file would forget the log.
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()
