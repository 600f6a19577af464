"""One SQLite connection: its settings, its transactions, and errors that say what to do."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fleet.errors import StorageError

__all__ = ["BUSY_TIMEOUT_S", "Database", "guarded"]

BUSY_TIMEOUT_S = 10.0
"""How long a statement waits for another process's transaction."""
WAL_LIMIT_BYTES = 8 << 20
"""The write-ahead log is cut back to this after a checkpoint."""
VACUUM_PAGES = 2048
"""Free pages given back to the disk by one tidying."""

# By what SQLite says: the numeric codes are only visible from Python 3.11 on.
_MEANING = (
    ("disk is full", "disk-full", "no space left for {path}; nothing of this write was kept"),
    ("readonly", "read-only", "{path} may not be written"),
    ("locked", "store-busy", "{path} was held by another process for {busy:.0f} s"),
    ("busy", "store-busy", "{path} was held by another process for {busy:.0f} s"),
    ("unable to open", "store-unopenable", "{path} cannot be opened"),
    ("malformed", "store-damaged", "{path} is damaged ({error})"),
    ("not a database", "store-damaged", "{path} is damaged ({error})"),
    ("unsupported file format", "store-damaged", "{path} is damaged ({error})"),
    ("UTF-8", "store-damaged", "{path} is damaged ({error})"),
    ("no such table", "store-damaged", "{path} lacks a table ({error})"),
)
_HINTS = {
    "disk-full": "Free some space; what was acknowledged before is safe.",
    "read-only": "Mount the disk writable, or name another --state folder.",
    "store-busy": "See which process holds it: fleet-device status.",
    "store-unopenable": "Check that --state names a folder that this user can read and write.",
    "store-damaged": "Start again: opening the store sets the damaged file aside and rebuilds it.",
    "disk-failed": "The disk refused; check it: dmesg, smartctl.",
}


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn SQLite's complaints about disk, lock and damage into :class:`StorageError`.

    Raises:
        StorageError: ``disk-full``, ``read-only``, ``store-busy``, ``store-unopenable``,
            ``store-damaged`` or ``disk-failed``.
    """
    try:
        yield
    except (sqlite3.ProgrammingError, sqlite3.IntegrityError, sqlite3.DataError):
        raise  # a mistake of ours, not of the disk
    except sqlite3.DatabaseError as error:
        raise _translated(path, str(error)) from error
    except UnicodeDecodeError as error:
        raise _translated(path, "text that is no UTF-8") from error


def _translated(path: Path, text: str) -> StorageError:
    for sign, code, message in _MEANING:
        if sign in text:
            filled = message.format(path=path, error=text, busy=BUSY_TIMEOUT_S)
            return StorageError(code, filled, _HINTS[code])
    return StorageError("disk-failed", f"{path}: {text}", _HINTS["disk-failed"])


class Database:
    """A connection that may be used from several threads, one at a time.

    Args:
        path: The file; made when it is absent, unless ``readonly``.
        readonly: Open for reading; every write is refused by SQLite.

    Raises:
        StorageError: See :func:`guarded`.
    """

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self.path = path
        self.readonly = readonly
        self._lock = threading.RLock()
        self._inside = False
        with guarded(path):
            self.connection = _connected(path, readonly)

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction, on the disk when it ends; inside another, join it.

        Raises:
            StorageError: Nothing of the (outer) block was kept.
        """
        with self._lock, guarded(self.path):
            if self._inside:
                yield self.connection
                return
            self.connection.execute("BEGIN IMMEDIATE")
            self._inside = True
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                # A full disk may have ended the transaction already.
                with suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
                raise
            finally:
                self._inside = False

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection for reading."""
        with self._lock, guarded(self.path):
            yield self.connection

    def number(self, query: str, values: tuple[object, ...] = ()) -> int:
        """Return the first column of the first row as an integer, 0 where there is none."""
        with self.read() as connection:
            row = connection.execute(query, values).fetchone()
        return int(row[0] or 0) if row else 0

    def tidy(self, pages: int = VACUUM_PAGES) -> bool:
        """Give free pages back to the disk and empty the write-ahead log.

        Returns:
            Whether the log could be emptied; a reader in another process delays it.
        """
        with self.read() as connection:
            # As a script: execute() would stop after the first page, for it sees no rows.
            connection.executescript(f"PRAGMA incremental_vacuum({pages:d})")
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not busy

    def close(self) -> None:
        """Close the connection; a second time does nothing."""
        with self._lock:
            self.connection.close()


def _connected(path: Path, readonly: bool) -> sqlite3.Connection:
    mode = "ro" if readonly else "rwc"
    if not readonly:
        # Nobody else on the machine may read a person's signals; SQLite's side files follow suit.
        with suppress(OSError):
            path.touch(mode=0o600)
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    settings = ["foreign_keys = ON", "trusted_schema = OFF", "cell_size_check = ON"]
    if not readonly:
        # Vacuuming must be chosen before the first page is written, which choosing WAL does.
        settings += ["auto_vacuum = INCREMENTAL", "journal_mode = WAL", "synchronous = FULL"]
        settings += ["secure_delete = ON", f"journal_size_limit = {WAL_LIMIT_BYTES}"]
    try:
        for setting in settings:
            connection.execute(f"PRAGMA {setting}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection
