from __future__ import annotations

import sqlite3
import tarfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

from fleet.errors import InputError, StorageError, UnavailableError
from server.control import requests as r
from server.control.backups.archive import AUTHORITY_KEY, KEYS, MANIFEST, Manifest
from server.control.backups.reading import unpacked
from server.control.backups.writing import write_archive
from server.control.reach import REGISTRY, opened_fleet
from server.registry import Head, Registry, open_registry
from server.service.config import ServerConfig, load_config, save_config
from server.service.folder import ServerFolder
from tests.server.control.backups.backing_up import AT, Take, put_back
from tests.server.control.controlling import ask
from tests.server.registry.filled import Clock


def test_a_backup_of_a_server_in_use_comes_back_on_another_machine(
    take: Take, kept: Registry, elsewhere: ServerFolder
) -> None:
    head = kept.audit.head()
    file = take(keys=True, authority_key=True)
    assert file.stat().st_mode & 0o777 == 0o600
    kept.devices.revoke("ada", why="later", actor="anna")
    found, aside = put_back(file, elsewhere)
    assert (aside, found.moved, found.lacking) == (None, (), [])
    fleet = opened_fleet(elsewhere)
    with fleet.registry as registry:
        assert registry.audit.verify(head).seq == head.seq + 1
        assert registry.audit.rows(newest=1)[0].verb == "registry.restore"
        assert registry.devices.get("ada").revoked is None
        assert all(ask(fleet, r.RoundReplay(round=number))["same"] for number in (1, 2))
        problems = [each["problems"] for each in ask(fleet, r.ReleaseVerify())["releases"]]
        assert problems[0] == []
    with closing(sqlite3.connect(elsewhere.database)) as nodes:
        assert nodes.execute("SELECT key FROM node").fetchall() == [("ada",)]
    for path in elsewhere.secrets:
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert list(elsewhere.path.glob(".restore-*")) == []


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({}, set()),
        ({"keys": True}, set(KEYS)),
        ({"authority_key": True}, {AUTHORITY_KEY}),
    ],
)
def test_no_private_key_is_in_a_backup_unless_it_is_asked_for(
    take: Take, home: ServerFolder, wanted: dict[str, bool], names: set[str]
) -> None:
    file = take(**wanted)
    with tarfile.open(file) as tar:
        found = set(tar.getnames())
    assert found & {*KEYS, AUTHORITY_KEY} == names
    assert {"registry.sqlite", "superlink.db", "server.toml", "ca.crt"} <= found
    private = [path for path in home.secrets if path.name not in names]
    assert not [path.name for path in private if path.read_bytes() in file.read_bytes()]


def test_without_keys_it_says_which_are_lacking_and_releases_still_verify(
    take: Take, elsewhere: ServerFolder
) -> None:
    found, _ = put_back(take(), elsewhere)
    assert found.lacking == ["ca.key", "release-key"]
    fleet = opened_fleet(elsewhere)
    with fleet.registry:
        assert ask(fleet, r.ReleaseVerify())["signatures_checked"] is True


def test_a_backup_is_never_replaced_and_a_failed_one_leaves_nothing(
    take: Take, home: ServerFolder, kept: Registry, tmp_path: Path
) -> None:
    file = take()
    content = file.read_bytes()
    with pytest.raises(InputError) as refused:
        take()
    assert refused.value.code == "backup-exists"
    assert file.read_bytes() == content
    home.database.write_bytes(b"x" * 4096)
    with pytest.raises(StorageError) as failed:
        take("two.tar")
    assert failed.value.code == "nodes-uncopied"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one.tar", "server"]


def test_a_registry_that_lies_elsewhere_comes_back_in_the_folder(
    take: Take, home: ServerFolder, elsewhere: ServerFolder, tmp_path: Path
) -> None:
    save_config(ServerConfig(database=f"sqlite:///{tmp_path}/far.sqlite"), home)
    put_back(take(), elsewhere)
    assert load_config(elsewhere).database == ""
    assert (elsewhere.path / REGISTRY).exists()


def test_a_registry_on_postgresql_is_refused_with_the_command(
    home: ServerFolder, kept: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.registry.database import url_of

    monkeypatch.setattr(kept.database, "path", None)
    monkeypatch.setattr(kept.database, "url", url_of("postgresql://fleet@db/registry"))
    with pytest.raises(UnavailableError) as refused:
        write_archive(kept, home, tmp_path / "one.tar", AT)
    assert refused.value.code == "backup-by-pg-dump"
    assert f"--file={tmp_path / 'one.tar'}" in refused.value.hint
    assert not (tmp_path / "one.tar").exists()


def test_a_manifest_comes_back_as_it_went(take: Take, tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    found = unpacked(take(), tmp_path / "stage")
    assert Manifest.model_validate_json(found.model_dump_json()) == found
    assert MANIFEST not in found.files
    assert found.made_at == "2026-11-21T22:00:00Z"


def test_a_backup_among_writers_is_one_moment(
    take: Take, kept: Registry, tmp_path: Path, clock: Clock
) -> None:
    ended, wrote = threading.Event(), threading.Event()

    def write() -> None:
        for number in range(10_000):
            if ended.is_set():
                return
            kept.devices.tag("ada", add=[f"t{number % 30}"], actor="anna")
            kept.devices.tag("ada", remove=[f"t{number % 30}"], actor="anna")
            wrote.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for name in ("one", "two"):
            wrote.clear()
            assert wrote.wait(30)
            (tmp_path / name).mkdir()
            found = unpacked(take(f"{name}.tar"), tmp_path / name)
            with open_registry(tmp_path / name / REGISTRY, clock=clock) as registry:
                assert registry.audit.verify() == Head(found.seq, found.hash)
    finally:
        ended.set()
        writer.join(30)
