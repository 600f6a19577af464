"""Reads a backup into an empty folder; what is not as its manifest says is refused."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from fleet.errors import InputError, StorageError
from fleet.federate.records import problems_of
from server.control.backups.archive import (
    CONFIG,
    FORMAT,
    KIND,
    MANIFEST,
    NEW,
    PRIVATE,
    REGISTRY_FILE,
    Manifest,
    blocks,
)

__all__ = ["LARGEST_MANIFEST_BYTES", "unpacked"]

LARGEST_MANIFEST_BYTES = 2**16


def unpacked(path: Path, stage: Path) -> Manifest:
    """Write a backup's files into an empty folder, each for its owner alone, durably.

    Raises:
        InputError: ``no-such-file``.
        StorageError: ``not-a-backup``, ``backup-newer`` or ``backup-damaged``; also ``disk-full``
            and its like.
    """
    if not path.is_file():
        raise InputError("no-such-file", f"there is no backup {path}", "")
    try:
        with tarfile.open(path, "r:") as tar:
            manifest = _manifest(path, tar)
            for member in tar:
                _take(path, tar, member, manifest, stage)
    except (tarfile.TarError, EOFError, ValueError) as error:  # the last of odd pax headers
        raise _damaged(path, str(error)) from error
    if lacking := [name for name in manifest.files if not (stage / name).exists()]:
        raise _damaged(path, f"{', '.join(lacking)} is missing")
    if lacking := [name for name in (REGISTRY_FILE, CONFIG) if name not in manifest.files]:
        raise _damaged(path, f"it never had {', '.join(lacking)}")
    return manifest


def _manifest(path: Path, tar: tarfile.TarFile) -> Manifest:
    first = tar.next()
    if first is None or first.name != MANIFEST or first.size > LARGEST_MANIFEST_BYTES:
        raise _no_backup(path, f"it does not begin with {MANIFEST}")
    try:
        found = json.loads(_file(path, tar, first).read())
    except (ValueError, RecursionError) as error:
        raise _no_backup(path, f"{MANIFEST} is no JSON") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise _no_backup(path, f"{MANIFEST} is not of kind {KIND}")
    form = found.get("format")
    if isinstance(form, int) and form > FORMAT:
        raise StorageError(
            "backup-newer",
            f"{path} has format {form}, this Corefleet reads up to {FORMAT}",
            f"Restore it with the Corefleet that wrote it: {str(found.get('version'))[:64]}.",
        )
    try:
        return Manifest.model_validate(found)
    except ValidationError as error:
        raise _damaged(path, f"{MANIFEST} breaks a rule: {problems_of(error)}") from error


def _take(
    path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, manifest: Manifest, stage: Path
) -> None:
    if member.name == MANIFEST and member.offset == 0:
        return
    part, target = manifest.files.get(member.name), stage / member.name
    if part is None or member.size != part.bytes or target.exists():
        raise _damaged(path, f"{member.name[:64]!r} is not in its manifest, or not like that")
    digest = hashlib.sha256()
    with _storing(target), open(os.open(target, NEW, PRIVATE), "wb") as file:
        for block in blocks(_file(path, tar, member)):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != part.sha256:
        raise _damaged(path, f"{member.name} has another digest than its manifest says")


def _file(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)
    found = tar.extractfile(member) if plain else None
    if found is None:
        raise _damaged(path, f"{member.name[:64]!r} is no plain file")
    return found


@contextmanager
def _storing(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            "write-failed", f"{target} could not be written ({error.strerror or error})", ""
        ) from error


def _no_backup(path: Path, why: str) -> StorageError:
    return StorageError(
        "not-a-backup", f"{path} is no backup of a server: {why}", "See: fleet server backup"
    )


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(
        "backup-damaged", f"{path} is damaged: {why}", "Nothing was changed. Take another backup."
    )
