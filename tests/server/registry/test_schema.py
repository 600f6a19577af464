from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, text

from fleet.errors import InputError, StorageError, UnavailableError
from fleet.federate.rule import read_rule
from server.registry import Registry, database, open_registry, tables
from server.registry.database import Database, url_of
from server.registry.schema import MIGRATIONS, migrate, newest
from tests.server.registry.filled import Clock, key_of, run_round
from tests.server.registry.postgres import Postgres


def test_the_revisions_make_the_tables_that_the_code_uses(empty: Registry) -> None:
    with empty.database.read() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, tables.METADATA) == []


def test_a_registry_of_the_newest_revision_is_left_as_it_is(
    empty: Registry, open_again: Callable[[], Registry]
) -> None:
    assert migrate(empty.database) == newest()
    assert open_again().audit.head() == empty.audit.head()


def test_a_registry_of_a_later_corefleet_is_refused(
    empty: Registry, open_again: Callable[[], Registry]
) -> None:
    empty.database.change(
        lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '99'"))
    )
    with pytest.raises(StorageError, match="revision 99; this Corefleet knows 0003") as caught:
        open_again()
    assert caught.value.code == "registry-newer"


def test_another_programs_file_is_refused_and_not_touched(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE alembic_version (version_num TEXT)")
        other.commit()
    with pytest.raises(StorageError) as caught:
        open_registry(path, clock=clock)
    assert caught.value.code == "not-a-registry"
    with closing(sqlite3.connect(path)) as other:
        names = other.execute("SELECT name FROM sqlite_master").fetchall()
    assert names == [("alembic_version",)]


@pytest.mark.services
def test_another_programs_database_is_refused(postgres: Postgres, clock: Clock) -> None:
    url = postgres.fresh("template0")
    other = Database(url_of(url))
    other.change(lambda connection: connection.execute(text("CREATE TABLE things (n int)")))
    other.close()
    with pytest.raises(StorageError, match="things") as caught:
        open_registry(url, clock=clock)
    assert caught.value.code == "not-a-registry"


def test_a_file_that_is_no_database_is_damaged(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "registry.sqlite"
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(StorageError) as caught:
        open_registry(path, clock=clock)
    assert caught.value.code == "registry-damaged"
    assert path.read_bytes().startswith(b"no database")


def test_a_new_file_is_its_owners_alone(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "server" / "registry.sqlite"
    open_registry(path, clock=clock).close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_urls_name_a_file_or_postgresql(tmp_path: Path) -> None:
    assert url_of(tmp_path / "r.sqlite").database == str(tmp_path / "r.sqlite")
    assert url_of("sqlite:////srv/r.sqlite").database == "/srv/r.sqlite"
    assert url_of("postgres" + "ql+psycopg2://u@h/d").drivername == "postgresql+psycopg"
    for wrong in ("mysql://u:secret@h/d", "sqlite://", "sqlite:///:memory:", "registry"):
        with pytest.raises(InputError) as caught:
            url_of(wrong)
        assert caught.value.code == "bad-registry-url"
        assert "secret" not in caught.value.message


def test_postgresql_without_its_driver_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(database, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="psycopg") as caught:
        open_registry("postgresql://u@h/d", clock=clock)
    assert "server-postgres" in caught.value.hint


def test_the_revisions_travel_with_the_package() -> None:
    assert (MIGRATIONS / "env.py").is_file()
    assert (MIGRATIONS / "versions" / "v0001_first.py").is_file()
    assert (MIGRATIONS / "versions" / "v0002_standing.py").is_file()
    assert (MIGRATIONS / "versions" / "v0003_memories_lease.py").is_file()
    assert newest() == "0003"


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_a_registry_of_an_earlier_corefleet_is_brought_up_with_all_that_is_in_it(
    place: Path | str, registry: Registry, open_again: Callable[[], Registry], revision: str
) -> None:
    run_round(registry)
    head, digests = registry.audit.head(), [row.digest for row in registry.releases.all()]

    def back(connection: Connection) -> None:
        later = ["memories", "leases"]
        if revision == "0001":
            later += ["policies", "orders", "heartbeat", "absences", "evaluations"]
            later += ["deliveries", "device_bytes"]
        for name in later:
            connection.execute(text(f"DROP TABLE {name}"))
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{revision}'"))

    registry.database.change(back)
    again = open_again()
    assert migrate(again.database) == newest()
    assert again.audit.head() == head
    assert [row.digest for row in again.releases.all()] == digests
    assert again.replay(1).same
    assert again.releases.memory(1, read_rule("adam:0.1")).steps == 0
    assert again.lease.get() is None


def test_a_database_that_keeps_no_utf8_is_refused_with_how_to_make_one() -> None:
    database.check_encoding("UTF8", "postgresql://fleet@db/registry")
    for encoding in ("SQL_ASCII", "LATIN1", "", None):
        with pytest.raises(StorageError) as caught:
            database.check_encoding(encoding, "postgresql://fleet@db/registry")
        assert caught.value.code == "registry-encoding"
        assert "postgresql://fleet@db/registry has the encoding" in caught.value.message
        assert "ENCODING 'UTF8' TEMPLATE template0" in caught.value.hint


@pytest.mark.services
@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_postgresql_of_another_encoding_is_refused_at_opening(
    postgres: Postgres, clock: Clock, encoding: str
) -> None:
    name = f"other_{encoding.lower()}"
    postgres._execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    with pytest.raises(StorageError, match=f"has the encoding {encoding}") as caught:
        open_registry(postgres.url(name), clock=clock)
    assert caught.value.code == "registry-encoding"
    postgres.drop(postgres.url(name))


@pytest.mark.services
def test_what_the_environment_says_of_encodings_does_not_matter(
    postgres: Postgres, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    url = postgres.fresh()
    with open_registry(url, clock=clock) as registry:
        registry.devices.enroll("küche-物", key_of("x"), actor="anna")
        assert registry.devices.get("küche-物").name == "küche-物"
    postgres.drop(url)
