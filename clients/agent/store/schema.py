"""The tables, and the ordered migrations that make them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

from clients.agent.store.database import Database
from fleet.errors import StorageError

__all__ = ["APPLICATION_ID", "MIGRATIONS", "Migration", "check_ours", "migrate"]

APPLICATION_ID = 0x436F7265  # "Core", so that another program's file is never taken for ours

Migration = Callable[[sqlite3.Connection], None]

_FIRST = (
    "CREATE TABLE people (person TEXT PRIMARY KEY, arrived INTEGER NOT NULL) WITHOUT ROWID",
    # The signal comes last, so that reading the rest of a row touches one page.
    """CREATE TABLE windows (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        person TEXT NOT NULL,
        source TEXT NOT NULL,
        start_s REAL NOT NULL,
        end_s REAL NOT NULL,
        split TEXT NOT NULL CHECK (split IN ('train', 'held-out', 'border')),
        label TEXT,
        pinned_s REAL,
        dtype TEXT NOT NULL CHECK (dtype IN ('<f2', '<f4')),
        channels INTEGER NOT NULL,
        samples INTEGER NOT NULL,
        size INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        digest BLOB NOT NULL,
        signal BLOB NOT NULL,
        UNIQUE (person, digest))""",
    "CREATE INDEX windows_by_time ON windows (person, start_s)",
    "CREATE INDEX windows_by_group ON windows (label, split, pinned_s, id, size)",
    """CREATE TABLE statements (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        person TEXT NOT NULL,
        window INTEGER REFERENCES windows (id) ON DELETE CASCADE,
        from_s REAL,
        to_s REAL,
        label TEXT,
        author TEXT NOT NULL,
        said_s REAL NOT NULL,
        key TEXT UNIQUE,
        size INTEGER NOT NULL,
        CHECK ((window IS NULL) <> (from_s IS NULL)))""",
    "CREATE INDEX statements_by_window ON statements (window)",
    "CREATE INDEX statements_by_person ON statements (person, from_s)",
    """CREATE TABLE journal (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        plan TEXT NOT NULL,
        round INTEGER NOT NULL,
        event TEXT NOT NULL,
        at_s REAL NOT NULL,
        detail TEXT NOT NULL,
        size INTEGER NOT NULL)""",
    """CREATE TABLE journal_people (
        entry INTEGER NOT NULL REFERENCES journal (id) ON DELETE CASCADE,
        person TEXT NOT NULL,
        PRIMARY KEY (entry, person)) WITHOUT ROWID""",
    """CREATE TABLE outbox (
        plan TEXT PRIMARY KEY,
        round INTEGER NOT NULL,
        put_s REAL NOT NULL,
        delivered_s REAL,
        size INTEGER NOT NULL,
        crc INTEGER NOT NULL,
        payload BLOB)""",
    """CREATE TABLE outbox_people (
        plan TEXT NOT NULL REFERENCES outbox (plan) ON DELETE CASCADE,
        person TEXT NOT NULL,
        PRIMARY KEY (plan, person)) WITHOUT ROWID""",
    "CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE state (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    """CREATE TABLE positions (
        person TEXT NOT NULL,
        source TEXT NOT NULL,
        offset INTEGER NOT NULL,
        prefix BLOB NOT NULL,
        state TEXT NOT NULL,
        touched_s REAL NOT NULL,
        PRIMARY KEY (person, source)) WITHOUT ROWID""",
)


def _first(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for statement in _FIRST:
        connection.execute(statement)


def _checkpoint_tables(connection: sqlite3.Connection, name: str) -> None:
    connection.execute(
        f"""CREATE TABLE {name}s (
            plan TEXT PRIMARY KEY,
            made_s REAL NOT NULL,
            windows TEXT NOT NULL,
            crc INTEGER NOT NULL,
            payload BLOB NOT NULL)"""
    )
    connection.execute(
        f"""CREATE TABLE {name}_people (
            plan TEXT NOT NULL REFERENCES {name}s (plan) ON DELETE CASCADE,
            person TEXT NOT NULL,
            PRIMARY KEY (plan, person)) WITHOUT ROWID"""
    )


def _second(connection: sqlite3.Connection) -> None:
    _checkpoint_tables(connection, "checkpoint")


def _third(connection: sqlite3.Connection) -> None:
    connection.execute(
        """CREATE TABLE residuals (
            key TEXT PRIMARY KEY,
            crc INTEGER NOT NULL,
            payload BLOB NOT NULL)"""
    )
    connection.execute(
        """CREATE TABLE residual_people (
            key TEXT NOT NULL REFERENCES residuals (key) ON DELETE CASCADE,
            person TEXT NOT NULL,
            PRIMARY KEY (key, person)) WITHOUT ROWID"""
    )


def _fourth(connection: sqlite3.Connection) -> None:
    connection.execute(
        """CREATE TABLE personal (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            made_s REAL NOT NULL,
            base TEXT NOT NULL,
            frame TEXT NOT NULL,
            layout TEXT NOT NULL,
            method TEXT NOT NULL,
            release INTEGER NOT NULL,
            state TEXT NOT NULL,
            serves INTEGER NOT NULL CHECK (serves IN (0, 1)),
            judged TEXT NOT NULL,
            digest TEXT NOT NULL,
            payload BLOB NOT NULL)"""
    )
    connection.execute(
        """CREATE TABLE personal_people (
            core INTEGER NOT NULL REFERENCES personal (id) ON DELETE CASCADE,
            person TEXT NOT NULL,
            PRIMARY KEY (core, person)) WITHOUT ROWID"""
    )
    _checkpoint_tables(connection, "personal_checkpoint")


def _fifth(connection: sqlite3.Connection) -> None:
    connection.execute(
        """CREATE TABLE fishers (
            key TEXT PRIMARY KEY,
            crc INTEGER NOT NULL,
            payload BLOB NOT NULL)"""
    )
    connection.execute(
        """CREATE TABLE fisher_people (
            key TEXT NOT NULL REFERENCES fishers (key) ON DELETE CASCADE,
            person TEXT NOT NULL,
            PRIMARY KEY (key, person)) WITHOUT ROWID"""
    )


MIGRATIONS: tuple[Migration, ...] = (_first, _second, _third, _fourth, _fifth)
"""The n-th takes a store from version n to n + 1; none is ever changed once released."""


def migrate(database: Database, migrations: Sequence[Migration] = MIGRATIONS) -> int:
    """Bring a store to the newest version, in one transaction.

    Returns:
        The version that it had.

    Raises:
        StorageError: ``store-newer`` for a store of a later Corefleet, ``not-a-store`` for another
            program's file; the file is left as it was.
    """
    found = database.number("PRAGMA user_version")
    check_ours(database, len(migrations))
    if found == len(migrations):
        return found
    with database.write() as connection:
        # Again, now that nobody else can write: two processes may start at once.
        start = database.number("PRAGMA user_version")
        for number in range(start, len(migrations)):
            migrations[number](connection)
            connection.execute(f"PRAGMA user_version = {number + 1}")
    return found


def check_ours(database: Database, known: int = len(MIGRATIONS)) -> None:
    """Refuse a file that another program or a later Corefleet wrote.

    Raises:
        StorageError: ``not-a-store`` or ``store-newer``.
    """
    found = database.number("PRAGMA user_version")
    owner = database.number("PRAGMA application_id")
    tables = database.number("SELECT count(*) FROM sqlite_master")
    if owner not in (APPLICATION_ID, 0) or (owner == 0 and tables):
        raise StorageError(
            "not-a-store",
            f"{database.path} is a SQLite file of another program (application id {owner})",
            "Name another --state folder.",
        )
    if found > known:
        raise StorageError(
            "store-newer",
            f"{database.path} has version {found}; this Corefleet knows versions up to {known}",
            "Install the Corefleet that wrote it, or a later one; the store was not touched.",
        )
