"""Backups: a whole registry in one file, taken while it is used; checked when it is put back."""

from __future__ import annotations

import shlex
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fleet.errors import InputError, StorageError, UnavailableError
from fleet.files import atomic_path
from server.registry import chain
from server.registry.audit import Head
from server.registry.copying import copy_database
from server.registry.database import Database, code_of_sqlite, url_of
from server.registry.schema import check_ours

__all__ = ["backup", "checked", "restore"]

_SIDE_FILES = ("", "-wal", "-shm", "-journal")


def backup(database: Database, path: Path) -> Head:
    """Copy a SQLite registry to one file; writers go on meanwhile.

    Args:
        database: The registry.
        path: Where; replaced only by a whole copy.

    Returns:
        The end of the copy's audit; write it down beside the backup.

    Raises:
        UnavailableError: ``backup-by-pg-dump`` for PostgreSQL, with the command.
        StorageError: ``disk-full``, ``read-only``, ``write-failed`` or ``registry-damaged``.
    """
    if database.path is None:
        url = database.url.set(drivername="postgresql").render_as_string(hide_password=True)
        file, name = shlex.quote(str(path)), shlex.quote(url)
        raise UnavailableError(
            "backup-by-pg-dump",
            f"{database.where} is backed up by PostgreSQL's own tools",
            f"pg_dump --format=custom --file={file} --dbname={name}; into an empty database: "
            f"pg_restore --single-transaction --dbname={name} {file}",
        )
    with atomic_path(path) as temporary:
        with _translated(database, path):
            copy_database(database.path, temporary)
        temporary.chmod(0o600)
        return checked(temporary)


def restore(path: Path, target: Path) -> Head:
    """Put a backup back as a registry; nothing that is there is replaced.

    Args:
        path: What :func:`backup` wrote.
        target: The registry's file.

    Returns:
        The end of its audit, to compare with what was written down.

    Raises:
        InputError: ``registry-exists`` or ``no-such-file``.
        StorageError: ``not-a-registry``, ``registry-newer``, ``registry-damaged`` or
            ``audit-broken``; nothing was restored.
    """
    if not path.is_file():
        raise InputError("no-such-file", f"there is no backup {path}", "")
    there = [each for end in _SIDE_FILES if (each := Path(f"{target}{end}")).exists()]
    if there:
        raise InputError(
            "registry-exists",
            f"{there[0]} is in the way; a restore replaces nothing",
            "Stop the server and move it aside, with the -wal and -shm files beside it.",
        )
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)
        temporary.chmod(0o600)
        return checked(temporary)


def checked(path: Path) -> Head:
    """Check a SQLite registry that nobody uses: every page, every reference, the audit's chain.

    Raises:
        StorageError: See :func:`restore`.
    """
    database = Database(url_of(path), as_found=True)
    try:
        with database.read() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
            if found != "ok":
                raise database.error("registry-damaged", str(found))
            if (lost := connection.exec_driver_sql("PRAGMA foreign_key_check").first()) is not None:
                raise database.error("registry-damaged", f"a row of {lost[0]} refers to nothing")
            if check_ours(database, connection) is None:
                raise StorageError("not-a-registry", f"{path} is empty", "Name a backup.")
            if broken := chain.first_broken(connection):
                raise StorageError(
                    "audit-broken", f"the audit of {path} is broken: row {broken[0]} {broken[1]}"
                )
            return Head(*chain.head(connection))
    finally:
        database.close()


@contextmanager
def _translated(database: Database, path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        text = f"while copying to {path}: {error}"
        raise database.error(code_of_sqlite(str(error)), text) from error
