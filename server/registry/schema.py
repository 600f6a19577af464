"""Whose database it is and which version it has; brings it to the newest by alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, select

from fleet.errors import StorageError
from server.registry import tables
from server.registry.database import Database

__all__ = ["MIGRATIONS", "check_ours", "config", "migrate", "newest"]

MIGRATIONS = Path(__file__).parent / "migrations"


def config(connection: Connection | None = None) -> Config:
    """Return alembic's configuration; it reads no file."""
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    made.attributes["connection"] = connection
    return made


def newest() -> str:
    """Return the revision that this Corefleet makes."""
    return str(ScriptDirectory.from_config(config()).get_current_head())


def migrate(database: Database) -> str | None:
    """Bring a registry to the newest revision, in one transaction; make it where there is none.

    Returns:
        The revision that it had; None for a new one.

    Raises:
        StorageError: ``registry-newer`` for a registry of a later Corefleet, ``not-a-registry`` for
            another program's database; it is left as it was.
    """
    with database.read() as connection:
        found = check_ours(database, connection)
    if found == newest():
        return found

    def upgrade(connection: Connection) -> str | None:
        # Again, now that nobody else can write: two processes may start at once.
        before = check_ours(database, connection)
        if before != newest():
            command.upgrade(config(connection), "head")
        return before

    return database.change(upgrade)


def check_ours(database: Database, connection: Connection) -> str | None:
    """Return the revision of a registry; None where there is nothing.

    Raises:
        StorageError: ``registry-newer`` or ``not-a-registry``.
    """
    there = set(inspect(connection).get_table_names())
    if not there:
        return None
    marked = tables.mark.name in there and "alembic_version" in there
    if not marked or connection.execute(select(tables.mark.c.format)).scalar() != tables.MARK:
        raise StorageError(
            "not-a-registry",
            f"{database.where} holds another program's tables ({', '.join(sorted(there)[:3])})",
            "Name another file or an empty database.",
        )
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
    if found not in known:
        raise StorageError(
            "registry-newer",
            f"{database.where} has revision {found}; this Corefleet knows {newest()} at most",
            "Install the Corefleet that wrote it, or a later one; the registry was not touched.",
        )
    return found
