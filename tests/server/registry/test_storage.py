from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import event, text

from fleet.errors import StorageError
from server.registry import Registry, database, open_registry
from tests.server.registry.filled import DEVICES, OPERATOR, Clock, filled, key_of
from tests.server.registry.postgres import Postgres, running


@pytest.fixture
def registry(file: Path, clock: Clock) -> Iterator[Registry]:
    with open_registry(file, clock=clock) as made:
        yield filled(made)


def pragma(registry: Registry, setting: str) -> None:
    """Apply a setting to every connection from now on."""
    registry.database.close()
    event.listen(registry.database.engine, "connect", lambda raw, _: raw.execute(setting))


def test_a_full_disk_is_an_error_and_costs_nothing_acknowledged(registry: Registry) -> None:
    with registry.database.read() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
    pragma(registry, f"PRAGMA max_page_count = {pages + 4}")
    kept, refused = 0, None
    while refused is None and kept < 1000:
        try:
            registry.devices.enroll(f"d{kept}", key_of(f"d{kept}"), actor=OPERATOR)
            kept += 1
        except StorageError as error:
            refused = error
    assert refused is not None
    assert refused.code == "disk-full"
    assert "nothing of this write was kept" in refused.message
    assert kept > 1
    assert len(registry.devices.all()) == len(DEVICES) + kept
    assert registry.audit.verify().seq == len(DEVICES) + 3 + kept


def test_a_disk_that_may_not_be_written_is_an_error(registry: Registry) -> None:
    pragma(registry, "PRAGMA query_only = ON")
    with pytest.raises(StorageError) as caught:
        registry.devices.revoke("ada", why="lost", actor=OPERATOR)
    assert caught.value.code == "read-only"
    assert registry.devices.get("ada").revoked is None


def test_waiting_for_another_writer_has_an_end(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 0.05)
    registry.database.close()
    path = registry.database.path
    assert path is not None
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError) as caught:
            registry.devices.revoke("ada", why="lost", actor=OPERATOR)
        assert caught.value.code == "registry-busy"
        assert len(registry.devices.all()) == 3  # readers do not wait
    registry.devices.revoke("ada", why="lost", actor=OPERATOR)


@pytest.mark.services
def test_waiting_for_another_writer_has_an_end_in_postgresql(
    postgres: Postgres, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.fresh()
    monkeypatch.setattr(database, "BUSY_TIMEOUT_S", 1.0)
    with open_registry(url, clock=clock) as first, open_registry(url, clock=clock) as second:
        filled(first)

        def meanwhile(_: object) -> None:
            with pytest.raises(StorageError) as caught:
                second.devices.revoke("ada", why="lost", actor=OPERATOR)
            assert caught.value.code == "registry-busy"

        first.database.change(meanwhile)
        second.devices.revoke("ada", why="lost", actor=OPERATOR)


@pytest.mark.services
def test_a_database_server_that_goes_and_comes_back_costs_nothing(
    clock: Clock,
) -> None:
    with running() as server:
        url = server.fresh()
        registry = filled(open_registry(url, clock=clock))
        head = registry.audit.head()
        server.stop()
        for _ in range(2):
            with pytest.raises(StorageError) as caught:
                registry.devices.revoke("ada", why="lost", actor=OPERATOR)
            assert caught.value.code == "registry-unreachable"
        server.start()
        assert registry.audit.verify() == head
        registry.devices.revoke("ada", why="lost", actor=OPERATOR)
        registry.close()
    with pytest.raises(StorageError) as caught:
        open_registry(url, clock=clock)
    assert caught.value.code == "registry-unreachable"


def test_damage_is_an_error_that_names_the_backup(registry: Registry) -> None:
    path = registry.database.path
    assert path is not None
    registry.close()
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(bytes(content))
    with pytest.raises(StorageError) as caught:
        registry.devices.all()
    assert caught.value.code == "registry-damaged"
    assert "restore" in caught.value.hint


def test_a_folder_that_is_a_file_cannot_be_opened(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        open_registry(tmp_path / "file" / "registry.sqlite", clock=clock)
    assert caught.value.code == "registry-unopenable"


def test_a_write_is_flushed_and_logged_ahead(registry: Registry) -> None:
    found = {}
    with registry.database.read() as connection:
        for name in ("synchronous", "journal_mode", "foreign_keys", "busy_timeout"):
            found[name] = connection.execute(text(f"PRAGMA {name}")).scalar_one()
    timeout_ms = int(1000 * database.BUSY_TIMEOUT_S)
    assert found == {
        "synchronous": 2,
        "journal_mode": "wal",
        "foreign_keys": 1,
        "busy_timeout": timeout_ms,
    }
