"""The registry's connections: settings, transactions, and errors that say what to do.

Writers take turns in both databases: SQLite by ``BEGIN IMMEDIATE``, PostgreSQL by an advisory lock.
What the turns prevent, unique constraints forbid as well; a transaction that they undo is tried
again, a bounded number of times.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from fleet.errors import FleetError, InputError, StorageError, UnavailableError

__all__ = ["BUSY_TIMEOUT_S", "Database", "check_encoding", "code_of_sqlite", "url_of"]

BUSY_TIMEOUT_S = 10.0
"""How long a transaction waits for another writer, or for a connection."""
STATEMENT_TIMEOUT_S = 60.0
"""How long PostgreSQL may work on one statement."""
LARGEST_POOL = 8
"""Connections that a process keeps; so many threads read at the same time."""
LARGEST_TRIES = 3
"""How often a transaction is tried that another writer's undid."""
PAGE_BYTES = 8192
"""Of a new SQLite file: an update of 2 kB fills SQLite's usual page for itself."""
WAL_LIMIT_BYTES = 8 << 20
"""SQLite's write-ahead log is cut back to this after a checkpoint."""

ENCODING = "UTF8"
"""Of a PostgreSQL database; in SQL_ASCII any bytes would be text."""

_LOCK = "SELECT pg_advisory_xact_lock(4862287412653)"  # any constant of ours
_WRITES = "registry_writes"
_UNDONE = ("40001", "40P01")  # serialization failure, deadlock

# By what SQLite says (its codes are not in every driver), and by PostgreSQL's SQLSTATE.
_SQLITE = (
    ("disk is full", "disk-full"),
    ("readonly", "read-only"),
    ("locked", "registry-busy"),
    ("busy", "registry-busy"),
    ("unable to open", "registry-unopenable"),
    ("malformed", "registry-damaged"),
    ("not a database", "registry-damaged"),
    ("unsupported file format", "registry-damaged"),
    ("UTF-8", "registry-damaged"),
    ("no such table", "registry-damaged"),
)
_POSTGRES = (
    ("53100", "disk-full"),
    ("25006", "read-only"),
    ("42501", "read-only"),
    ("55P03", "registry-busy"),
    ("57014", "registry-busy"),
    ("53300", "registry-busy"),
    ("3D", "registry-unopenable"),
    ("28", "registry-unopenable"),
    ("XX", "registry-damaged"),
    ("42P01", "registry-damaged"),
    ("58", "disk-failed"),
)
_MEANING = {
    "disk-full": (
        "no space left for {where}; nothing of this write was kept",
        "Free some space; what was acknowledged before is safe.",
    ),
    "read-only": (
        "{where} may not be written ({error})",
        "Mount the disk writable, or give the user the right to write.",
    ),
    "registry-busy": (
        "{where} was held by another writer for {busy:.0f} s; nothing was kept",
        "Try again; see which process holds it if this stays.",
    ),
    "registry-unopenable": (
        "{where} cannot be opened ({error})",
        "Check that the folder or database exists and that this user may use it.",
    ),
    "registry-unreachable": (
        "the database server of {where} does not answer ({error})",
        "Start PostgreSQL, or check host, port and network.",
    ),
    "registry-damaged": (
        "{where} is damaged ({error})",
        "Stop the server and restore the last backup: fleet server restore.",
    ),
    "registry-conflict": (
        "another writer of {where} was there first ({error}); nothing was kept",
        "Look at the present state and decide again.",
    ),
    "disk-failed": (
        "{where}: {error}",
        "The disk or the database server refused; look into the system's log.",
    ),
}
T = TypeVar("T")


def url_of(place: str | Path) -> URL:
    """Return the address of a registry: a SQLite file, or PostgreSQL by URL.

    >>> url_of("postgresql://fleet@db/registry").drivername
    'postgresql+psycopg'

    Raises:
        InputError: ``bad-registry-url`` for any other database.
    """
    if isinstance(place, Path):
        return URL.create("sqlite", database=str(place))
    try:
        url = make_url(place)
    except ArgumentError as error:
        raise _bad_url(place) from error
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        raise _bad_url(url.render_as_string(hide_password=True))
    return url


def _bad_url(place: str) -> InputError:
    return InputError(
        "bad-registry-url",
        f"a registry is a SQLite file or a PostgreSQL database, not {place!r}",
        "Write sqlite:////path/registry.sqlite or postgresql://user@host/database.",
    )


class Database:
    """The connections of one process to one registry; any number of threads may use it.

    Args:
        url: See :func:`url_of`.

    Raises:
        UnavailableError: ``extra-missing`` for PostgreSQL without its driver.
        StorageError: ``read-only`` or ``registry-unopenable`` where the file's folder cannot be
            made.

    Attributes:
        path: The file; None for PostgreSQL.
        where: Names the database to people, without a password.
    """

    def __init__(self, url: URL, *, as_found: bool = False) -> None:
        self.url = url
        self.path = Path(str(url.database)) if url.get_backend_name() == "sqlite" else None
        self.where = str(self.path or url.render_as_string(hide_password=True))
        self.engine = _sqlite(self.path, as_found) if self.path else _postgres(url)

    def change(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` as one transaction, durable when this returns; alone among all writers.

        Args:
            work: Reads and writes; called again when another writer's transaction undid it.

        Raises:
            StorageError: Nothing was kept, see the codes in this module.
        """
        for left in reversed(range(LARGEST_TRIES)):
            try:
                with self._begun(writes=True) as connection:
                    return work(connection)
            except DBAPIError as error:
                if not left or not _may_pass(error):
                    raise self._translated(error) from error
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Lend a connection that sees one state of the registry.

        Raises:
            StorageError: See the codes in this module.
        """
        try:
            with self._begun(writes=False) as connection:
                yield connection
        except DBAPIError as error:
            raise self._translated(error) from error

    def close(self) -> None:
        """Close all connections; a second time does nothing."""
        self.engine.dispose()

    @contextmanager
    def _begun(self, *, writes: bool) -> Iterator[Connection]:
        try:
            with self.engine.connect() as connection:
                if self.path:
                    connection = connection.execution_options(**{_WRITES: writes})
                elif not writes:
                    connection = connection.execution_options(
                        isolation_level="REPEATABLE READ", postgresql_readonly=True
                    )
                with connection.begin():
                    if writes and not self.path:
                        connection.exec_driver_sql(_LOCK)
                    yield connection
        except PoolTimeout as error:
            raise self.error("registry-busy", "no connection is free") from error
        except sqlite3.Error as error:  # of the settings of a connection, before SQLAlchemy has it
            raise self.error(code_of_sqlite(str(error)), str(error)) from error
        except UnicodeDecodeError as error:
            raise self.error("registry-damaged", "text that is no UTF-8") from error

    def error(self, code: str, text: str) -> StorageError:
        """Make the error of a code of this module."""
        message, hint = _MEANING[code]
        filled = message.format(where=self.where, error=text, busy=BUSY_TIMEOUT_S)
        return StorageError(code, filled, hint)

    def _translated(self, error: DBAPIError) -> FleetError:
        text = " ".join(str(error.orig).split())
        if isinstance(error, IntegrityError) or _state_of(error) in _UNDONE:
            return self.error("registry-conflict", text)
        if self.path:
            return self.error(code_of_sqlite(text), text)
        state = _state_of(error)
        found = [code for sign, code in _POSTGRES if state.startswith(sign)]
        if not found and (not state or state.startswith(("08", "57P"))):
            return self.error("registry-unreachable", text)
        return self.error(found[0] if found else "disk-failed", text)


def code_of_sqlite(text: str) -> str:
    """Return the code of what SQLite says."""
    return next((code for sign, code in _SQLITE if sign in text), "disk-failed")


def _state_of(error: DBAPIError) -> str:
    return str(getattr(error.orig, "sqlstate", None) or "")


def _may_pass(error: DBAPIError) -> bool:
    return isinstance(error, IntegrityError) or _state_of(error) in _UNDONE


def _sqlite(path: Path, as_found: bool) -> Engine:
    engine = create_engine(
        "sqlite://",
        creator=lambda: _connected(path, as_found),
        poolclass=QueuePool,
        pool_size=LARGEST_POOL,
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT_S,
    )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # The driver would begin late, and then without the lock that a writer needs.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _connected(path: Path, as_found: bool) -> sqlite3.Connection:
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Nobody else on the machine may read it; SQLite's side files follow suit.
        path.touch(mode=0o600)
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    settings = ["foreign_keys = ON", "recursive_triggers = ON", "trusted_schema = OFF"]
    settings += ["cell_size_check = ON", "synchronous = FULL"]
    if not as_found:
        # The size must be chosen before the first page is written, which choosing WAL does.
        settings += [f"page_size = {PAGE_BYTES}", "journal_mode = WAL"]
        settings += [f"journal_size_limit = {WAL_LIMIT_BYTES}"]
    try:
        for setting in settings:
            connection.execute(f"PRAGMA {setting}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _postgres(url: URL) -> Engine:
    if find_spec("psycopg") is None:
        raise UnavailableError(
            "extra-missing",
            "a registry on PostgreSQL needs the package psycopg, which is not installed",
            "pip install 'corefleet[server-postgres]'",
        )
    limits = {"lock_timeout": BUSY_TIMEOUT_S, "statement_timeout": STATEMENT_TIMEOUT_S}
    options = " ".join(f"-c {name}={1000 * seconds:.0f}" for name, seconds in limits.items())
    engine = create_engine(
        url,
        pool_size=LARGEST_POOL,
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT_S,
        pool_pre_ping=True,  # the server may have been started again since
        connect_args={
            "connect_timeout": round(BUSY_TIMEOUT_S),
            "options": options,
            "client_encoding": "utf8",  # whatever the environment says
        },
    )
    where = url.render_as_string(hide_password=True)

    @event.listens_for(engine, "connect", insert=True)
    def connected(connection: Any, record: Any) -> None:
        check_encoding(connection.info.parameter_status("server_encoding"), where)

    return engine


def check_encoding(encoding: str | None, where: str) -> None:
    """Refuse a PostgreSQL database that cannot keep every text, or keeps bytes that are none.

    Args:
        encoding: What the server says that the database has; None where it does not say.
        where: Names the database to people.

    Raises:
        StorageError: ``registry-encoding``.
    """
    if encoding == ENCODING:
        return
    raise StorageError(
        "registry-encoding",
        f"{where} has the encoding {encoding or 'that it does not tell'}, and a registry is kept "
        f"in {ENCODING}",
        f"Make another database and name that one: CREATE DATABASE fleet ENCODING '{ENCODING}' "
        "TEMPLATE template0, or createdb --encoding=UTF8 --template=template0 fleet.",
    )
