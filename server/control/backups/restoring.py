"""Puts a backup into a server's folder: all is checked first, what was there is moved aside.

staged(file, folder) ──► Staged.replaces ──► place()
the server's lock is held        before-restore-TIME/ gets what another file replaces
everything is checked            server.toml comes last: a folder with it is whole
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from fleet.errors import FleetError, StorageError
from fleet.federate.signing import public_of
from fleet.files import sync_directory
from fleet.supervise.record import RunLock, standing
from server.control.backups.archive import (
    AUTHORITY_KEY,
    CONFIG,
    NODES_FILE,
    REGISTRY_FILE,
    RELEASE_PUBLIC,
    Manifest,
)
from server.control.backups.change import Change
from server.control.backups.reading import unpacked
from server.control.backups.surveys import Survey, survey
from server.registry import open_registry
from server.registry.backup import checked
from server.registry.ledger import Ledger, Outcome
from server.service.config import load_config
from server.service.folder import ServerFolder
from server.service.processes import PROGRAM

__all__ = ["ASIDE", "Staged", "staged"]

ASIDE = "before-restore-"
"""How a folder begins that has what a restore replaced."""
STAGE = ".restore-"
SIDE_FILES = ("", "-wal", "-shm", "-journal")
PUBLIC_FILES = frozenset({CONFIG, "ca.crt", "server.crt", RELEASE_PUBLIC})


@dataclass(frozen=True)
class Staged:
    """A backup that was checked and lies beside its place.

    Args:
        folder: Of the server.
        stage: Where it lies now.
        manifest: What it holds.
        brings: Its registry.
        before: The registry that is there now; None where there is none, or none that can be read.
        moved: Names of files that are moved aside.
        looking: Whether a server may run meanwhile, so that nothing may be put in place.
    """

    folder: ServerFolder
    stage: Path
    manifest: Manifest
    brings: Survey
    before: Survey | None
    moved: tuple[str, ...]
    looking: bool = False

    @property
    def running(self) -> list[str]:
        """Processes of the server that must end before the backup is put in place."""
        return _alive(self.folder)

    @property
    def change(self) -> Change:
        """Whose keys get in after it, and whose do no more."""
        hidden = self.before is None and REGISTRY_FILE in self.moved
        return Change(self.before, self.brings, hidden)

    @property
    def replaces(self) -> str:
        """The blast radius in words; empty where nothing is replaced."""
        if not self.moved:
            return ""
        words = f"moves {', '.join(self.moved)} of {self.folder.path} aside"
        if REGISTRY_FILE in self.moved:
            there = self.before.text if self.before else "a registry that cannot be read"
            words += f"; the registry: {there}; the backup: {self.brings.text}"
        return words

    @property
    def lacking(self) -> list[str]:
        """Private keys that neither the backup nor the folder has."""
        moved = set(self.moved)
        return [
            name
            for name in (AUTHORITY_KEY, "release-key")
            if name not in self.manifest.files
            and (name in moved or not (self.folder.path / name).exists())
        ]

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "made_at": self.manifest.made_at,
            "version": self.manifest.version,
            "seq": self.manifest.seq,
            "hash": self.manifest.hash,
            "files": sorted(self.manifest.files),
            "brings": self.brings.record(),
            "before": self.before and self.before.record(),
            "moved": list(self.moved),
            **self.change.record(),
            "lacking": self.lacking,
            "running": self.running,
        }

    def place(self, actor: str, now: datetime) -> Path | None:
        """Put it in place; return the folder of what was there, None where nothing was.

        A crash in between leaves a folder without ``server.toml``, which nothing starts from, and
        both halves on the disk; restoring again completes it.

        Raises:
            ValueError: It was only looked at.
            StorageError: ``write-failed``, or the registry's own.
        """
        if self.looking:
            raise ValueError("a backup that was only looked at is not put in place")
        self._write_down(actor, now)
        aside = self.folder.path / f"{ASIDE}{now:%Y%m%dT%H%M%S}"
        order = sorted(self.manifest.files, key=lambda name: name == CONFIG)
        try:
            if self.moved:
                aside.mkdir(mode=0o700)
            for name in sorted(self.moved, key=lambda name: name != CONFIG):
                os.replace(self.folder.path / name, aside / name)
            for name in order:
                if name in PUBLIC_FILES:
                    (self.stage / name).chmod(0o644)
                os.replace(self.stage / name, self.folder.path / name)
            for each in (*([aside] if self.moved else ()), self.folder.path):
                sync_directory(each)
        except OSError as error:
            raise StorageError(
                "write-failed",
                f"{error.filename} could not be put in place ({error.strerror})",
                f"What was there is in {aside}; restore again once the disk allows it.",
            ) from error
        return aside if self.moved else None

    def _write_down(self, actor: str, now: datetime) -> None:
        """Add the restore to the audit of the registry that is put in place."""
        detail = {"made_at": self.manifest.made_at, "seq": self.manifest.seq}
        path = self.stage / REGISTRY_FILE
        with open_registry(path, clock=now.timestamp) as registry:
            Ledger(registry.database, now.timestamp).change(
                "registry.restore",
                {**detail, "hash": self.manifest.hash},
                lambda _: Outcome(None, "registry"),
                None,
                actor=actor,
            )
        with open(path, "rb") as file:
            os.fsync(file.fileno())


@contextmanager
def staged(file: Path, folder: ServerFolder, *, looking: bool = False) -> Iterator[Staged]:
    """Check a backup beside its place, while no server can start there.

    Args:
        file: The backup.
        folder: Of the server; made if need be, and unmade where nothing is put in place.
        looking: Nothing will be put in place, so a server may run meanwhile.

    Raises:
        InputError: ``no-such-file``, ``server-config``.
        StorageError: ``already-running``, ``left-running``; ``not-a-backup``, ``backup-newer`` or
            ``backup-damaged``; ``registry-newer``, ``registry-damaged``, ``audit-broken``.
    """
    made = not folder.path.exists()
    folder.make()
    # A folder that is unmade again needs the lock in any case: nobody may start in it.
    lock = None if looking and not made else RunLock(folder.path, PROGRAM)
    try:
        if not looking:
            _check_nobody_runs(folder)
        with tempfile.TemporaryDirectory(dir=folder.path, prefix=STAGE) as name:
            yield replace(_examined(file, folder, Path(name)), looking=looking)
    finally:
        if lock is not None:
            lock.close()
        if made and not folder.config.exists():
            shutil.rmtree(folder.path, ignore_errors=True)


def _examined(file: Path, folder: ServerFolder, stage: Path) -> Staged:
    manifest = unpacked(file, stage)
    if load_config(ServerFolder(stage)).database:
        raise StorageError(
            "backup-damaged", f"{CONFIG} in {file} names a registry that is not in it", ""
        )
    head = checked(stage / REGISTRY_FILE)
    if (head.seq, head.hash) != (manifest.seq, manifest.hash):
        raise StorageError(
            "backup-damaged", f"the audit of {file} does not end as its manifest says", ""
        )
    before = None
    if (folder.path / REGISTRY_FILE).exists():
        with suppress(FleetError):
            before = survey(folder.path / REGISTRY_FILE)
    brings = survey(stage / REGISTRY_FILE)
    return Staged(folder, stage, manifest, brings, before, tuple(_moved(folder, stage, manifest)))


def _moved(folder: ServerFolder, stage: Path, manifest: Manifest) -> list[str]:
    """Return which files another replaces, or which belong to one that is replaced."""
    databases = [f"{name}{end}" for name in (REGISTRY_FILE, NODES_FILE) for end in SIDE_FILES]
    # Which run the service is, is known to the SuperLink's database alone.
    names = [*databases, folder.standing.name]
    small = [name for name in manifest.files if name not in (REGISTRY_FILE, NODES_FILE)]
    names += [name for name in small if not _same(stage / name, folder.path / name)]
    if "ca.crt" in names:
        names += [AUTHORITY_KEY, "server.crt", "server.key"]
    if RELEASE_PUBLIC in manifest.files and not _fits(folder, stage / RELEASE_PUBLIC):
        names.append("release-key")
    there = [name for name in dict.fromkeys(names) if (folder.path / name).exists()]
    # Alone it says nothing, but without it nothing starts from a folder that is half done.
    if there and folder.config.exists() and CONFIG not in there:
        there.append(CONFIG)
    return there


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _fits(folder: ServerFolder, public: Path) -> bool:
    key = folder.release_key
    return not key.is_file() or public_of(key.read_bytes()) == public.read_bytes()


def _alive(folder: ServerFolder) -> list[str]:
    found = standing(folder.path)
    return sorted(k for k, each in found["processes"].items() if each["alive"]) if found else []


def _check_nobody_runs(folder: ServerFolder) -> None:
    alive = _alive(folder)
    if alive:
        raise StorageError(
            "left-running",
            f"{', '.join(alive)} of {folder.path} still run, though their supervisor ended",
            "End them first; see their ids: fleet server status",
        )
