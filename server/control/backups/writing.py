"""Writes a backup: copies of what is in use, digests of the copies, one file."""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
import tarfile
import tempfile
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from fleet.errors import InputError, StorageError
from fleet.federate.signing import public_of
from fleet.files import atomic_path
from server.control.backups.archive import (
    AUTHORITY,
    AUTHORITY_KEY,
    CONFIG,
    KEYS,
    MANIFEST,
    NAMES,
    NEW,
    NODES_FILE,
    PRIVATE,
    REGISTRY_FILE,
    RELEASE_PUBLIC,
    Manifest,
    Part,
    blocks,
)
from server.registry import Registry
from server.registry.copying import copy_database
from server.service.config import load_config, save_config
from server.service.folder import ServerFolder, read_bytes

__all__ = ["write_archive"]


def write_archive(
    registry: Registry,
    folder: ServerFolder,
    path: Path,
    now: datetime,
    *,
    keys: bool = False,
    authority_key: bool = False,
) -> Manifest:
    """Back a server up while it runs; durable when this returns.

    The registry comes first: of what is enrolled or revoked meanwhile the transport then knows more
    than the registry, never less.

    Args:
        registry: The server's, a SQLite file.
        folder: The server's.
        path: The file, for its owner alone.
        now: The time, with its zone.
        keys: With :data:`KEYS`.
        authority_key: With the private key of the development authority.

    Raises:
        InputError: ``backup-exists``; a backup is never replaced.
        UnavailableError: ``backup-by-pg-dump`` for PostgreSQL, with the command.
        StorageError: ``disk-full``, ``read-only``, ``write-failed``, ``unreadable`` or
            ``registry-damaged``; no file is there then.
    """
    if path.exists():
        raise InputError(
            "backup-exists", f"{path} is there already; a backup is never replaced", "Name another."
        )
    if registry.database.path is None:
        registry.backup(path)  # refuses, and names the command
    wanted = [CONFIG, AUTHORITY, *(KEYS if keys else ()), *([AUTHORITY_KEY] * authority_key)]
    with (
        atomic_path(path) as temporary,
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".backup-") as name,
    ):
        stage = Path(name)
        head = registry.backup(stage / REGISTRY_FILE)
        if folder.database.is_file():
            _copied(folder.database, stage / NODES_FILE)
        _collect(folder, stage, wanted)
        manifest = Manifest(
            version=version("corefleet"),
            made_at=now.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            seq=head.seq,
            hash=head.hash,
            files={each: _part(stage / each) for each in NAMES if (stage / each).exists()},
        )
        _pack(manifest, stage, temporary, now.timestamp())
    return manifest


def _collect(folder: ServerFolder, stage: Path, wanted: list[str]) -> None:
    for name in wanted:
        if _is(folder, name):
            (stage / name).write_bytes(read_bytes(folder.path / name))
    if folder.release_key.is_file():
        (stage / RELEASE_PUBLIC).write_bytes(public_of(read_bytes(folder.release_key)))
    elif folder.release_public.is_file():
        (stage / RELEASE_PUBLIC).write_bytes(read_bytes(folder.release_public))
    copy = ServerFolder(stage)
    if copy.config.exists() and (config := load_config(copy)).database:
        # It comes back in the folder of the server, wherever it is now.
        save_config(config.model_copy(update={"database": ""}), copy)


def _pack(manifest: Manifest, stage: Path, path: Path, at_s: float) -> None:
    head = (manifest.model_dump_json(indent=1) + "\n").encode()
    with (
        open(os.open(path, NEW, PRIVATE), "wb") as file,
        tarfile.open(fileobj=file, mode="w") as tar,
    ):
        tar.addfile(_info(MANIFEST, len(head), at_s), io.BytesIO(head))
        for name, part in manifest.files.items():
            with open(stage / name, "rb") as content:
                tar.addfile(_info(name, part.bytes, at_s), content)


def _info(name: str, size: int, at_s: float) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, PRIVATE, int(at_s)
    return info


def _copied(source: Path, target: Path) -> None:
    """Copy Flower's database; who writes to it goes on meanwhile."""
    try:
        copy_database(source, target)
    except sqlite3.Error as error:
        raise StorageError(
            "nodes-uncopied",
            f"{source} could not be copied ({error})",
            "Try again; look at the disk, and at log/superlink.log.",
        ) from error


def _is(folder: ServerFolder, name: str) -> bool:
    return (folder.path / name).is_file()


def _part(path: Path) -> Part:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in blocks(file):
            digest.update(block)
    return Part(sha256=digest.hexdigest(), bytes=path.stat().st_size)
