from __future__ import annotations

import io
import json
import os
import sqlite3
import tarfile
import threading
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import FleetError, InputError, StorageError, UnavailableError
from fleet.federate.signing import make_key
from fleet.supervise.record import RunLock
from server.control import requests as r
from server.control.backups.archive import AUTHORITY_KEY, FORMAT, KEYS, MANIFEST, Manifest
from server.control.backups.reading import unpacked
from server.control.backups.restoring import ASIDE, Staged, staged
from server.control.backups.writing import write_archive
from server.control.certificates import Identity
from server.control.operators import Operators
from server.control.reach import REGISTRY, opened_fleet
from server.control.roles import Role
from server.registry import Head, Registry, open_registry
from server.service.authority import make_authority
from server.service.config import ServerConfig, load_config, save_config
from server.service.folder import ServerFolder, write_private
from server.service.processes import PROGRAM
from tests.server.control.controlling import NOW, SIGNING, ask
from tests.server.registry.filled import Clock

AT = datetime(2026, 11, 21, 22, 0, tzinfo=timezone.utc)
LATER = AT + timedelta(seconds=1)
Take = Callable[..., Path]


@pytest.fixture
def home(folder: ServerFolder) -> ServerFolder:
    """A server with keys of every kind, and the SuperLink's nodes."""
    write_private(folder.release_key, SIGNING)
    write_private(folder.superexec_secret, b"secret")
    with closing(sqlite3.connect(folder.database)) as nodes:
        nodes.execute("PRAGMA journal_mode = WAL").fetchall()
        nodes.execute("CREATE TABLE node (key TEXT)")
        nodes.execute("INSERT INTO node VALUES ('ada')")
        nodes.commit()
    return folder


@pytest.fixture
def take(home: ServerFolder, kept: Registry, tmp_path: Path) -> Take:
    """Back the server up."""

    def take(name: str = "one.tar", **wanted: bool) -> Path:
        path = tmp_path / name
        write_archive(kept, home, path, AT, **wanted)
        return path

    return take


@pytest.fixture
def elsewhere(tmp_path: Path) -> ServerFolder:
    return ServerFolder(tmp_path / "elsewhere")


def put_back(file: Path, folder: ServerFolder, now: datetime = AT) -> tuple[Staged, Path | None]:
    with staged(file, folder) as found:
        return found, found.place("root", now)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(each.relative_to(folder)): each.read_bytes()
        for each in sorted(folder.rglob("*"))
        if each.is_file() and not each.name.startswith(("run.lock", "registry.sqlite-"))
    }


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


def test_what_was_there_is_moved_aside_and_named(
    take: Take, home: ServerFolder, kept: Registry, clock: Clock
) -> None:
    operators = Operators(kept, clock)
    operators.issued(Identity("bea", Role.viewer, "b" * 40), clock() + 60, actor="root")
    file = take()
    kept.devices.revoke("bob", why="lost", actor="anna")
    operators.revoke("bea", why="", actor="root")
    head = kept.audit.head()
    kept.close()
    home.standing.write_text("{}")
    with staged(file, home) as found:
        assert "registry.sqlite" in found.moved
        assert "3 devices, 2 rounds, 3 releases" in found.replaces
        assert "lets in again: bob" in found.replaces
        assert "makes 1 revoked certificate of operators good" in found.replaces
        aside = found.place("root", AT)
    assert aside is not None
    assert aside.name == f"{ASIDE}20261121T220000"
    with open_registry(aside / REGISTRY, clock=clock) as moved:
        assert moved.devices.get("bob").revoked is not None
        assert moved.audit.verify() == head
    assert snapshot(aside)["standing.json"] == b"{}"
    assert not home.standing.exists()
    # What is the same is left, and so are the keys that belong to it.
    assert home.authority_key.exists()
    assert not (aside / "ca.key").exists()
    with opened_fleet(home).registry as registry:
        assert registry.devices.get("bob").revoked is None


def test_keys_that_fit_no_longer_are_moved_aside_too(take: Take, elsewhere: ServerFolder) -> None:
    file, other = take(), make_authority(NOW)
    elsewhere.make()
    save_config(ServerConfig(), elsewhere)
    write_private(elsewhere.authority, other.certificate)
    write_private(elsewhere.authority_key, other.key)
    write_private(elsewhere.release_key, make_key())
    found, aside = put_back(file, elsewhere)
    assert aside is not None
    assert {"ca.crt", "ca.key", "release-key"} <= set(snapshot(aside))
    assert found.lacking == ["ca.key", "release-key"]
    assert not elsewhere.authority_key.exists()


def test_a_registry_that_cannot_be_read_is_moved_aside_as_well(
    take: Take, home: ServerFolder, kept: Registry
) -> None:
    file = take()
    kept.close()
    (home.path / REGISTRY).write_bytes(b"x" * 8192)
    with staged(file, home) as found:
        assert "a registry that cannot be read" in found.replaces
        found.place("root", AT)
    with opened_fleet(home).registry as registry:
        assert registry.audit.verify().seq


def test_while_a_server_runs_nothing_is_restored(
    take: Take, home: ServerFolder, elsewhere: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = take()
    lock = RunLock(home.path, PROGRAM)
    before = snapshot(home.path)
    with pytest.raises(StorageError) as refused, staged(file, home):
        pass
    lock.close()
    assert refused.value.code == "already-running"
    left = {"processes": {"superlink": {"alive": True}, "front": {"alive": False}}}
    monkeypatch.setattr("server.control.backups.restoring.standing", lambda _: left)
    with pytest.raises(StorageError, match="superlink of") as refused, staged(file, home):
        pass
    assert refused.value.code == "left-running"
    assert snapshot(home.path) == before


def test_a_backup_is_looked_at_beside_a_running_server_and_put_in_place_by_nobody(
    take: Take, home: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = take()
    lock = RunLock(home.path, PROGRAM)
    before = snapshot(home.path)
    left = {"processes": {"superlink": {"alive": True}, "front": {"alive": False}}}
    monkeypatch.setattr("server.control.backups.restoring.standing", lambda _: left)
    with staged(file, home, looking=True) as found:
        assert found.record()["running"] == ["superlink"]
        assert "registry.sqlite" in found.moved
        with pytest.raises(ValueError, match="only looked at"):
            found.place("root", AT)
    lock.close()
    assert snapshot(home.path) == before


def test_nothing_starts_where_a_backup_is_looked_at_in_a_folder_that_goes_again(
    take: Take, elsewhere: ServerFolder
) -> None:
    with staged(take(), elsewhere, looking=True), pytest.raises(StorageError) as refused:
        RunLock(elsewhere.path, PROGRAM)
    assert refused.value.code == "already-running"
    assert not elsewhere.path.exists()


def test_nothing_starts_while_it_is_being_restored(take: Take, elsewhere: ServerFolder) -> None:
    with staged(take(), elsewhere), pytest.raises(StorageError) as refused:
        RunLock(elsewhere.path, PROGRAM)
    assert refused.value.code == "already-running"
    assert not elsewhere.path.exists()


def rewritten(file: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    """Write a backup again with other members."""
    with tarfile.open(file) as tar:
        members = []
        for info in tar:
            content = tar.extractfile(info)
            assert content is not None
            members.append((info, content.read()))
    change(members)
    with tarfile.open(file, "w") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def manifest_with(**changes: Any) -> Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        info, data = members[0]
        members[0] = info, json.dumps(json.loads(data) | changes).encode()

    return change


def added(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[..., None]:
    def change(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        members.append((info, b""))

    return change


def flipped(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    info, data = members[1]
    members[1] = info, data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]


def replaced_by_a_link(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    place = next(n for n, (info, _) in enumerate(members) if info.name == "ca.crt")
    link = tarfile.TarInfo("ca.crt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members[place] = link, b""


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (flipped, "backup-damaged"),
        (lambda members: members.pop(), "backup-damaged"),
        (lambda members: members.append(members[-1]), "backup-damaged"),
        (lambda members: members.pop(0), "not-a-backup"),
        (lambda members: members.reverse(), "not-a-backup"),
        (added("../outside"), "backup-damaged"),
        (added("/etc/outside"), "backup-damaged"),
        (added("link", tarfile.SYMTYPE), "backup-damaged"),
        (added("device", tarfile.CHRTYPE), "backup-damaged"),
        (replaced_by_a_link, "backup-damaged"),
        (manifest_with(format=FORMAT + 1), "backup-newer"),
        (manifest_with(format=0), "backup-damaged"),
        (manifest_with(kind="other"), "not-a-backup"),
        (manifest_with(seq=1), "backup-damaged"),
        (manifest_with(hash="0" * 64), "backup-damaged"),
        (manifest_with(files={}), "backup-damaged"),
        (manifest_with(files={"../x": {"sha256": "0" * 64, "bytes": 0}}), "backup-damaged"),
    ],
)
def test_a_backup_that_is_not_whole_changes_nothing(
    take: Take, home: ServerFolder, elsewhere: ServerFolder, change: Any, code: str
) -> None:
    file = take()
    rewritten(file, change)
    before = snapshot(home.path)
    for folder in (home, elsewhere):
        with pytest.raises(StorageError) as refused, staged(file, folder):
            pass
        assert refused.value.code == code
    assert snapshot(home.path) == before
    assert not elsewhere.path.exists()


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
def test_a_backup_that_was_cut_off_is_refused(
    take: Take, elsewhere: ServerFolder, keep: float
) -> None:
    file = take()
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(StorageError) as refused, staged(file, elsewhere):
        pass
    assert refused.value.code in ("backup-damaged", "not-a-backup")


def test_what_is_no_backup_at_all_is_said(elsewhere: ServerFolder, tmp_path: Path) -> None:
    for content in (b"x" * 2000, b"SQLite format 3\0" * 100, b"\x1f\x8b" * 500):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(StorageError), staged(tmp_path / "file", elsewhere):
            pass
    with pytest.raises(InputError) as refused, staged(tmp_path / "none", elsewhere):
        pass
    assert refused.value.code == "no-such-file"


def test_a_newer_backup_names_the_version_that_reads_it(take: Take, tmp_path: Path) -> None:
    file = take()
    rewritten(file, manifest_with(format=9, version="7.1", more="than we know"))
    (tmp_path / "stage").mkdir()
    with pytest.raises(StorageError) as refused:
        unpacked(file, tmp_path / "stage")
    assert "7.1" in refused.value.hint


def test_a_restore_that_was_cut_off_starts_nothing_and_is_completed_by_another(
    take: Take, home: ServerFolder, kept: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = take()
    kept.close()
    calls, replace = [], os.replace

    def failing(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 6:
            raise OSError(5, "Input/output error", str(target))
        replace(source, target)

    with staged(file, home) as found:
        with monkeypatch.context() as patch:
            patch.setattr("server.control.backups.restoring.os.replace", failing)
            with pytest.raises(StorageError) as failed:
                found.place("root", AT)
        assert failed.value.code == "write-failed"
    with pytest.raises(FleetError) as refused:
        load_config(home)
    assert refused.value.code == "no-server"
    put_back(file, home, LATER)
    with opened_fleet(home).registry as registry:
        assert registry.replay(2).same


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
