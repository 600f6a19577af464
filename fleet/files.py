"""Durable files: written whole or not at all (temp + fsync + rename)."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fleet.errors import StorageError

__all__ = ["atomic_path", "sync_directory", "write_bytes", "write_json", "write_text"]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` when the block succeeds.

    The file is flushed to disk before the rename and the directory after it, so that after a
    power cut ``path`` holds either the old content or the new, whole.

    Raises:
        StorageError: ``disk-full``, ``read-only`` or ``write-failed``; ``path`` is whole, and
            untouched unless only the last flush of its folder failed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except OSError as error:
        raise _storage_error(path, error) from error
    finally:
        # Cleaning up must not hide why the write failed, e.g. a parent that is no folder.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` durably."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        _write_all(file, content)


def write_text(path: Path, content: str) -> None:
    """Write ``content`` to ``path`` durably, as UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` durably, as indented JSON with a final newline."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def _write_all(file: IO[bytes], content: bytes) -> None:
    file.write(content)
    file.flush()


def sync_directory(directory: Path) -> None:
    """Make durable what was renamed or removed in a directory.

    Raises:
        OSError: When the disk refuses.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _storage_error(path: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            "disk-full",
            f"no space left on the disk of {path}; the file was not written",
            "Free some space and run the command again (a simulation: with --resume).",
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageError(
            "read-only",
            f"{path} may not be written ({error.strerror})",
            "Choose a folder that you can write to with --out.",
        )
    return StorageError(
        "write-failed", f"{path} could not be written ({error.strerror or error})", ""
    )
