from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fleet.errors import DataError
from fleet.har import downloads
from fleet.har.downloads import find_folder, finish, numbers, opened


def tar_of(path: Path, names: list[str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))
    return path


def zip_of(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "abc")
    return path


def wanted(path: object) -> bool:
    return str(path).endswith(".txt")


def code_of(path: Path) -> str:
    with pytest.raises(DataError) as caught, opened(path, wanted):
        pass
    return caught.value.code


@pytest.mark.parametrize("kind", ["a.tar", "a.tar.gz", "a.tar.xz", "a.zip"])
def test_only_wanted_members_are_unpacked_and_the_folder_is_removed(
    tmp_path: Path, kind: str
) -> None:
    names = ["top/a.txt", "top/b.csv", "__MACOSX/top/a.txt", "top/._a.txt"]
    if kind == "a.zip":
        path = zip_of(tmp_path / kind, names)
    else:
        mode = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tar.xz": "w:xz"}[kind]
        path = tar_of(tmp_path / kind, names, mode)
    with opened(path, wanted) as folder:
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert [file.relative_to(folder).as_posix() for file in files] == ["top/a.txt"]
        assert files[0].read_bytes() == b"abc"
    assert not folder.exists()


@pytest.mark.parametrize("name", ["/etc/a.txt", "../a.txt", "top/../../a.txt", "top\\..\\a.txt"])
def test_members_that_lead_out_of_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    assert code_of(tar_of(tmp_path / "a.tar", ["ok.txt", name])) == "archive-unsafe"
    assert code_of(zip_of(tmp_path / "a.zip", ["ok.txt", name])) == "archive-unsafe"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo("a.txt")
        entry.type, entry.linkname = kind, "/etc/passwd"
        archive.addfile(entry)
    assert code_of(tmp_path / "a.tar") == "archive-unsafe"


def test_archives_are_bounded_in_members_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar_of(tmp_path / "a.tar", ["a.txt", "b.txt", "c.txt"])
    monkeypatch.setattr(downloads, "MAX_UNPACKED_BYTES", 8)
    assert code_of(path) == "archive-too-large"
    monkeypatch.setattr(downloads, "MAX_UNPACKED_BYTES", 9)
    with opened(path, wanted):
        pass
    monkeypatch.setattr(downloads, "MAX_MEMBERS", 2)
    assert code_of(path) == "archive-too-large"


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    for kind, mode in (("tar", "w"), ("tar.gz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")):
        names = [f"{n:04}.txt" for n in range(50)]
        path = tar_of(tmp_path / f"a.{kind}", names, mode)
        whole = path.read_bytes()
        # Plus 513 so that a plain tar, which has no checksum of data, ends within a file.
        path.write_bytes(whole[: len(whole) // 2 + (513 if kind == "tar" else 0)])
        assert code_of(path) == "archive-corrupt", kind
    path = zip_of(tmp_path / "a.zip", ["a.txt"])
    content = bytearray(path.read_bytes())
    content[content.index(b"abc")] ^= 1
    path.write_bytes(content)
    assert code_of(path) == "archive-corrupt"
    path.write_bytes(b"neither tar nor zip")
    assert code_of(path) == "archive-corrupt"
    path.write_bytes(b"")
    assert code_of(path) == "archive-corrupt"
    assert code_of(tmp_path / "absent.zip") == "data-missing"


def test_the_nearest_matching_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "b" / "c" / "d").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "d").mkdir(parents=True)
    found = find_folder(tmp_path, lambda folder: folder.name == "d", tmp_path, "a d")
    assert found == tmp_path / "b" / "c" / "d"
    with pytest.raises(DataError) as caught:
        find_folder(tmp_path, lambda folder: folder.name == "e", Path("given.zip"), "an e")
    assert caught.value.code == "layout-unknown"
    assert "given.zip" in caught.value.message
    assert caught.value.hint == "an e"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "holds no rows"),
        ("\n \n", "holds no rows"),
        ("1 2\n3\n", "columns changed"),
        ("1 x\n", "could not convert"),
        ("1 2 3\n", "has 3 columns, not 2"),
        ("1 2\n3 nan\n", "NaN or Inf in 1 rows, first in row 2"),
    ],
)
def test_garbled_tables_tell_the_rule(tmp_path: Path, text: str, rule: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=rule):
        numbers(tmp_path / "a.txt", 2)


def test_tables_are_read_with_and_without_header(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 2\r\n3 4e0\r\n")
    np.testing.assert_array_equal(numbers(tmp_path / "a.txt", 2), [[1, 2], [3, 4]])
    (tmp_path / "a.txt").write_text("a,b\n1,2\n")
    table = numbers(tmp_path / "a.txt", 2, delimiter=",", header="a,b")
    np.testing.assert_array_equal(table, [[1, 2]])
    with pytest.raises(ValueError, match="starts with 'a,b'"):
        numbers(tmp_path / "a.txt", 2, delimiter=",", header="b,a")
    with pytest.raises(ValueError, match="is missing"):
        numbers(tmp_path / "b.txt", 2)


def test_a_long_list_of_problems_is_bounded() -> None:
    with pytest.raises(DataError, match="and 80 more"):
        finish([f"file {n}" for n in range(100)], Path("root"), "hint")
    finish([], Path("root"), "hint")
