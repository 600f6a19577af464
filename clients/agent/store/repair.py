"""A damaged store: what is whole moves to a fresh file, the damaged one is set aside.

The steps are ordered so that a power cut between any two leaves either the damaged store in its
place, to be repaired again, or none and the complete fresh one beside it, to be renamed.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from clients.agent.store.database import Database
from clients.agent.store.schema import MIGRATIONS, migrate
from clients.agent.store.windows import VOUCHED, checksum
from fleet.errors import StorageError

__all__ = ["damage_of", "header_damage", "pending", "quarantined", "repair", "settle"]

SIDE_FILES = ("-wal", "-shm")
SLICE = 64  # rows asked for at once; one by one where that fails
LARGEST_ID_RANGE = 10_000_000
LARGEST_FORMAT = 2  # bytes 18 and 19 of the header: 1 is a rollback journal, 2 a log
# Parents before children, because foreign keys are enforced; True where ``id`` is the row's number.
_TABLES = (
    ("people", False),
    ("windows", True),
    ("statements", True),
    ("journal", True),
    ("journal_people", False),
    ("outbox", False),
    ("outbox_people", False),
    ("counters", False),
    ("state", False),
    ("positions", False),
)
Row = dict[str, object]


def damage_of(database: Database) -> str:
    """Return what is wrong with an open store; empty when it is whole.

    Raises:
        StorageError: What is no damage, e.g. ``store-busy``.
    """
    try:
        version = database.number("PRAGMA user_version")
        with database.read() as connection:
            # The full check: an index that disagrees with its table fails only when it is used.
            found = str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])
            named = connection.execute("SELECT name FROM sqlite_master").fetchall()
    except StorageError as error:
        if error.code != "store-damaged":
            raise
        return error.message
    missing = [table for table, _ in _TABLES if (table,) not in named]
    if found == "ok" and version and missing:
        return f"{database.path} lacks the tables {', '.join(missing)}"
    return "" if found == "ok" else f"{database.path} is damaged ({found.splitlines()[0]})"


def header_damage(path: Path) -> str:
    """Return what is wrong with a file's format bytes, which SQLite takes for write protection."""
    with suppress(FileNotFoundError), open(path, "rb") as file:
        header = file.read(20)
        if len(header) == 20 and max(header[18:20]) > LARGEST_FORMAT:
            return f"{path} is damaged (file format {max(header[18:20])})"
    return ""


def quarantined(path: Path) -> list[Path]:
    """Return every file that was set aside for a store, side files included."""
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


def pending(path: Path) -> bool:
    """Tell whether an earlier repair was cut off."""
    return _rebuilt(path).exists()


def settle(path: Path) -> None:
    """Finish or drop a repair that was cut off; needs the store alone."""
    if path.exists():
        _remove(_rebuilt(path))
        return
    for suffix in SIDE_FILES:
        _beside(path, suffix).unlink(missing_ok=True)
    _rebuilt(path).rename(path)


def repair(path: Path, damage: str, now_s: float) -> str:
    """Rebuild a store from what is whole and set the damaged file aside; needs the store alone.

    Args:
        path: The store.
        damage: What is wrong with it, for the message.
        now_s: Seconds since the epoch; names the copy.

    Returns:
        A message for people: what happened, what was kept, where the damaged file is.

    Raises:
        StorageError: The disk refused; the damaged store is where it was.
    """
    fresh = _rebuilt(path)
    _remove(fresh)
    saved = _salvage(path, fresh)
    aside = _free_name(path, now_s)
    path.rename(aside)
    log, index = (_beside(path, suffix) for suffix in SIDE_FILES)
    if log.exists() and log.stat().st_size:
        log.rename(_beside(aside, SIDE_FILES[0]))
    log.unlink(missing_ok=True)
    index.unlink(missing_ok=True)
    fresh.rename(path)
    kept = ", ".join(f"{count} {name}" for name, count in saved.items() if count) or "nothing"
    return f"{damage}; set aside as {aside.name}; kept what was whole: {kept}"


def _salvage(damaged: Path, fresh: Path) -> dict[str, int]:
    """Copy every whole row; returns how many of each table."""
    target = Database(fresh)
    try:
        try:
            source = Database(damaged, readonly=True)
        except StorageError:
            migrate(target)
            return {}
        with closing(source):
            migrate(target, MIGRATIONS[: _version(source)])
            with target.write() as connection:
                return {
                    table: _copied(source.connection, connection, table, by_id)
                    for table, by_id in _TABLES
                }
    finally:
        # Closing moves the log into the file, so that one rename takes all of it.
        target.close()


def _version(source: Database) -> int:
    try:
        found = source.number("PRAGMA user_version")
    except StorageError:
        found = 0
    return found if 1 <= found <= len(MIGRATIONS) else len(MIGRATIONS)


def _copied(source: sqlite3.Connection, target: sqlite3.Connection, table: str, by_id: bool) -> int:
    known = {row[1] for row in target.execute(f"PRAGMA table_info({table})")}
    copied = 0
    for row in _by_id(source, table) if by_id else _both_ways(source, table):
        if not _matches(table, row):
            continue
        names = sorted(known & row.keys())
        query = (
            f"INSERT OR IGNORE INTO {table} ({', '.join(names)})"
            f" VALUES ({', '.join('?' * len(names))})"
        )
        # A row whose parent was lost, or that breaks a rule, is not whole.
        with suppress(sqlite3.IntegrityError):
            copied += target.execute(query, [row[name] for name in names]).rowcount
    return copied


def _matches(table: str, row: Row) -> bool:
    """Tell whether a row's content is what its column ``crc`` vouches for."""
    if table == "windows":
        return checksum(*(row.get(name) for name in VOUCHED)) == row.get("crc")
    payload = row.get("payload")
    return payload is None or (isinstance(payload, bytes) and zlib.crc32(payload) == row.get("crc"))


def _by_id(source: sqlite3.Connection, table: str) -> Iterator[Row]:
    """Yield every row that can be read, looked up by id around what cannot."""
    first, last = (_end(source, table, order) for order in ("ASC", "DESC"))
    if last is None:
        return
    low = max(first or 1, last - LARGEST_ID_RANGE)
    for start in range(low, last + 1, SLICE):
        where = f"WHERE id BETWEEN {start} AND {min(start + SLICE - 1, last)}"
        rows, whole = _rows(source, table, where)
        if not whole:
            single = (_rows(source, table, f"WHERE id = {start + one}") for one in range(SLICE))
            rows = [row for found, _ in single for row in found]
        yield from rows


def _both_ways(source: sqlite3.Connection, table: str) -> Iterator[Row]:
    """Yield the rows before the damage and those after it."""
    rows, whole = _rows(source, table, "")
    yield from rows
    if not whole:
        yield from _rows(source, table, "ORDER BY 1 DESC")[0]


def _rows(source: sqlite3.Connection, table: str, clause: str) -> tuple[list[Row], bool]:
    """Return the rows up to the first that cannot be read, and whether there was none."""
    found: list[Row] = []
    try:
        cursor = source.execute(f"SELECT * FROM {table} {clause}")
        names = [column[0] for column in cursor.description]
        for row in cursor:
            found.append(dict(zip(names, row, strict=True)))
    except (sqlite3.Error, UnicodeDecodeError):
        return found, False
    return found, True


def _end(source: sqlite3.Connection, table: str, order: str) -> int | None:
    with suppress(sqlite3.Error):
        row = source.execute(f"SELECT id FROM {table} ORDER BY id {order} LIMIT 1").fetchone()
        return int(row[0]) if row else None
    return None


def _free_name(path: Path, now_s: float) -> Path:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    for number in range(1, 1000):
        tail = "" if number == 1 else f"-{number}"
        aside = path.with_name(f"{path.name}.damaged-{stamp}{tail}")
        if not aside.exists():
            return aside
    raise StorageError(
        "quarantine-full", f"{path.parent} holds 999 damaged stores of {stamp}", "Delete them."
    )


def _rebuilt(path: Path) -> Path:
    return path.with_name(f"{path.name}.rebuilt")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _remove(path: Path) -> None:
    for suffix in ("", *SIDE_FILES):
        _beside(path, suffix).unlink(missing_ok=True)
