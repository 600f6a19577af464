from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import InputError, StorageError
from server.control.backups.archive import FORMAT
from server.control.backups.reading import unpacked
from server.control.backups.restoring import staged
from server.service.folder import ServerFolder
from tests.server.control.backups.backing_up import Take, snapshot


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


def nested(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[0] = members[0][0], b"[" * 60_000


def with_a_map_of_holes(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    members[1][0].pax_headers = {"GNU.sparse.map": "a,b"}


def replaced_by_a_link(members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    place = next(n for n, (info, _) in enumerate(members) if info.name == "ca.crt")
    link = tarfile.TarInfo("ca.crt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    members[place] = link, b""


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (flipped, "backup-damaged"),
        (nested, "not-a-backup"),
        (with_a_map_of_holes, "backup-damaged"),
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
