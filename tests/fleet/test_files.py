from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fleet import files
from fleet.errors import StorageError
from fleet.files import atomic_path, write_bytes, write_json, write_text

OLD, NEW = b"old content", b"new content, longer than the old"


class PowerCutError(BaseException):
    """Ends the process as far as the code under test can tell."""


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "state.bin"
    path.write_bytes(OLD)
    return path


def refusing(error: BaseException) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise error

    return refuse


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Where a write can fail before the rename, in its order.
POINTS: dict[str, tuple[object, str]] = {
    "write": (files, "_write_all"),
    "fsync": (os, "fsync"),
    "replace": (os, "replace"),
}


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EDQUOT, "disk-full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "read-only"),
        (errno.EPERM, "read-only"),
        (errno.EIO, "write-failed"),
    ],
)
def test_a_failure_before_the_rename_leaves_the_old_content_whole(
    target: Path, monkeypatch: pytest.MonkeyPatch, point: str, number: int, code: str
) -> None:
    monkeypatch.setattr(*POINTS[point], refusing(OSError(number, os.strerror(number))))
    with pytest.raises(StorageError) as caught:
        write_bytes(target, NEW)
    assert caught.value.code == code
    assert str(target) in caught.value.message
    assert target.read_bytes() == OLD
    assert names(target.parent) == ["state.bin"]


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("error", [PowerCutError(), KeyboardInterrupt(), RuntimeError("bug")])
def test_a_crash_before_the_rename_leaves_the_old_content_whole(
    target: Path, monkeypatch: pytest.MonkeyPatch, point: str, error: BaseException
) -> None:
    monkeypatch.setattr(*POINTS[point], refusing(error))
    with pytest.raises(type(error)):
        write_bytes(target, NEW)
    assert target.read_bytes() == OLD
    assert names(target.parent) == ["state.bin"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), PowerCutError()])
def test_a_failure_after_the_rename_leaves_the_new_content_whole(
    target: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(files, "sync_directory", refusing(error))
    with pytest.raises((StorageError, PowerCutError)):
        write_bytes(target, NEW)
    assert target.read_bytes() == NEW
    assert names(target.parent) == ["state.bin"]


def test_half_of_a_write_never_shows(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(file: object, content: bytes) -> None:
        file.write(content[: len(content) // 2])  # type: ignore[attr-defined]
        file.flush()  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_write_all", half)
    with pytest.raises(StorageError, match="no space left"):
        write_bytes(target, NEW)
    assert target.read_bytes() == OLD
    assert names(target.parent) == ["state.bin"]


def test_a_new_file_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refusing(OSError(errno.ENOSPC, "full")))
    with pytest.raises(StorageError):
        write_bytes(tmp_path / "new.bin", NEW)
    assert names(tmp_path) == []


def test_the_data_reaches_the_disk_before_the_rename_and_the_folder_after(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        steps.append(f"fsync {kind}")
        fsync(descriptor)

    def note_replace(source: Path, destination: Path) -> None:
        assert Path(source).read_bytes() == NEW
        assert Path(source).parent == Path(destination).parent
        steps.append("replace")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_bytes(target, NEW)
    assert steps == ["fsync file", "replace", "fsync folder"]
    assert target.read_bytes() == NEW
    assert names(target.parent) == ["state.bin"]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()


@pytest.mark.parametrize("inner", ["child", "folder/child"])
def test_a_parent_that_is_a_file_is_a_storage_error(target: Path, inner: str) -> None:
    with pytest.raises(StorageError) as caught:
        write_bytes(target / inner, NEW)
    assert caught.value.code == "write-failed"
    assert target.read_bytes() == OLD


def test_a_name_that_is_too_long_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        write_bytes(tmp_path / ("n" * 255), NEW)
    assert caught.value.code == "write-failed"
    assert names(tmp_path) == []


def test_a_target_that_is_a_folder_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(StorageError):
        write_bytes(tmp_path / "taken", NEW)
    assert names(tmp_path) == ["taken"]


def test_a_block_that_writes_nothing_is_a_storage_error(target: Path) -> None:
    with pytest.raises(StorageError), atomic_path(target):
        pass
    assert target.read_bytes() == OLD


def test_an_error_of_the_block_passes_and_nothing_is_renamed(target: Path) -> None:
    def failing() -> None:
        with atomic_path(target) as temporary:
            temporary.write_bytes(NEW)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        failing()
    assert target.read_bytes() == OLD
    assert names(target.parent) == ["state.bin"]


def test_json_is_written_whole_with_a_final_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"b": [1, 2.5], "a": None})
    assert path.read_text().endswith("}\n")
    assert json.loads(path.read_text()) == {"b": [1, 2.5], "a": None}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(
    target: Path, bad: object
) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_json(target, {"a": bad})
    assert target.read_bytes() == OLD
