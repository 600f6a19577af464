from __future__ import annotations

import os
import shlex
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fleet.errors import FleetError, InputError, StorageError, UnavailableError
from server.registry import Registry, open_registry, restore
from tests.server.registry.filled import OPERATOR, Clock, filled, opened, run_round
from tests.server.registry.postgres import Postgres, environment, program


@pytest.fixture
def registry(file: Path, clock: Clock) -> Iterator[Registry]:
    with open_registry(file, clock=clock) as made:
        yield filled(made)


def test_a_backup_of_a_registry_in_use_comes_back_whole(
    registry: Registry, tmp_path: Path, clock: Clock
) -> None:
    made = run_round(registry)
    plan = opened(registry, made, 2)
    head = registry.backup(tmp_path / "backup.sqlite")
    assert head == registry.audit.head()
    registry.devices.revoke("ada", why="later", actor=OPERATOR)

    target = tmp_path / "new" / "registry.sqlite"
    assert restore(tmp_path / "backup.sqlite", target) == head
    with open_registry(target, clock=clock) as restored:
        assert restored.audit.verify(head) == head
        assert restored.replay(1).same
        assert restored.devices.get("ada").revoked is None
        found = restored.open_round()
        assert found is not None
        assert found.row.plan == plan
    assert not list(tmp_path.glob("backup.sqlite-*"))
    assert (tmp_path / "backup.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_backup_replaces_the_one_before(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "backup.sqlite"
    registry.backup(path)
    run_round(registry)
    head = registry.backup(path)
    assert restore(path, tmp_path / "r.sqlite") == head
    assert sorted(each.name for each in tmp_path.iterdir()) == ["backup.sqlite", "r.sqlite"]


@pytest.mark.parametrize("end", ["", "-wal", "-shm"])
def test_a_restore_replaces_nothing(registry: Registry, tmp_path: Path, end: str) -> None:
    registry.backup(tmp_path / "backup.sqlite")
    there = tmp_path / f"registry.sqlite{end}"
    there.write_bytes(b"mine")
    with pytest.raises(InputError) as caught:
        restore(tmp_path / "backup.sqlite", tmp_path / "registry.sqlite")
    assert caught.value.code == "registry-exists"
    assert there.read_bytes() == b"mine"


def damage_nothing_but_the_audit(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("DROP TRIGGER audit_keeps_text")
        raw.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 2")
        raw.commit()


def lose_a_row(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("DELETE FROM releases WHERE number = 0")
        raw.commit()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def scramble(path: Path) -> None:
    path.write_bytes(b"x" * 8192)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (damage_nothing_but_the_audit, "audit-broken"),
        (lose_a_row, "registry-damaged"),
        (cut, "registry-damaged"),
        (scramble, "registry-damaged"),
        (empty, "not-a-registry"),
    ],
)
def test_a_backup_that_is_not_whole_is_not_restored(
    registry: Registry, tmp_path: Path, damage: object, code: str
) -> None:
    run_round(registry)
    path = tmp_path / "backup.sqlite"
    registry.backup(path)
    damage(path)  # type: ignore[operator]
    with pytest.raises(StorageError) as caught:
        restore(path, tmp_path / "registry.sqlite")
    assert caught.value.code == code
    assert sorted(each.name for each in tmp_path.iterdir()) == ["backup.sqlite"]


def test_a_backup_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        restore(tmp_path / "none", tmp_path / "registry.sqlite")
    assert caught.value.code == "no-such-file"


def test_a_disk_without_room_keeps_the_backup_before(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "file" / "backup.sqlite"
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(FleetError):
        registry.backup(path)


@pytest.mark.services
def test_the_commands_that_are_named_for_postgresql_work(
    postgres: Postgres, tmp_path: Path, clock: Clock
) -> None:
    url, target = postgres.fresh(), postgres.fresh("template0")
    with open_registry(url, clock=clock) as registry:
        filled(registry)
        made, head = run_round(registry), registry.audit.head()
        with pytest.raises(UnavailableError) as caught:
            registry.backup(tmp_path / "backup.dump")
    dump, _, back = caught.value.hint.partition("; into an empty database: ")
    names = [each.partition("?")[0].rpartition("/")[2] for each in (url, target)]
    for command in (dump, back.replace(*names)):
        words = shlex.split(command)
        found = program(words[0])
        assert found is not None
        done = subprocess.run(
            [found, *words[1:]], env=environment(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    with open_registry(target, clock=clock) as restored:
        assert restored.audit.verify(head) == head
        assert restored.replay(1).release.digest == made.digest
        with pytest.raises(StorageError):
            restored.database.change(
                lambda connection: connection.exec_driver_sql("DELETE FROM audit")
            )
