"""The model folder: its paths, its lock, its two pointers and what may be swept from it."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from clients.agent.serving.records import Pointer
from fleet.errors import StorageError
from fleet.files import sync_directory, write_json, write_text

__all__ = ["CURRENT", "LAST_GOOD", "LOCK_WAIT_S", "ModelFolder", "identity_of"]

CURRENT, LAST_GOOD = "current", "last-good"
LOCK_WAIT_S = 30.0
_LOCK_PAUSE_S = 0.02
_STARTING = "starting"
_MAX_POINTER_BYTES = 4096
_SUFFIX = ".safetensors"
_BASE_DIGITS = 16
_NAME = re.compile(r"^[0-9]{6,}-[0-9a-f]{16}$")


def identity_of(path: Path) -> tuple[int, ...] | None:
    """Return what changes whenever a file is replaced or written; None when there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    # The inode alone could come back; with both times it cannot within any real swap.
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


class ModelFolder:
    """``STATE/model`` of one device.

    Args:
        state_dir: The device's state directory.
    """

    def __init__(self, state_dir: Path) -> None:
        self.path = Path(state_dir) / "model"
        self.base = self.path / "base.safetensors"
        self.bases = self.path / "bases"
        self.releases = self.path / "releases"
        self.served = self.path / "served"
        self.own = self.path / "own"

    def make(self) -> None:
        """Make the folders, durably.

        Raises:
            StorageError: ``folder-failed``.
        """
        try:
            for folder in (self.releases, self.served):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self.path.parent):
                sync_directory(folder)
        except OSError as error:
            raise StorageError(
                "folder-failed", f"{self.path} could not be made: {error.strerror}", ""
            ) from error

    def base_file(self, digest: str) -> Path:
        """Return where a base that came later than the first lies."""
        return self.bases / f"{digest[:_BASE_DIGITS]}{_SUFFIX}"

    def base_files(self) -> list[Path]:
        """Return the files of the bases that came later than the first, by name."""
        return sorted(self.bases.glob(f"*{_SUFFIX}"))

    def base_in_use(self) -> Path:
        """Return the file of the base that what is served is of."""
        current = self.readable_pointer(CURRENT)
        return self.base_file(current.base) if current is not None and current.base else self.base

    def release_file(self, name: str) -> Path:
        """Return where a release's core state lies."""
        return self.releases / f"{name}{_SUFFIX}"

    def served_file(self, name: str) -> Path:
        """Return where a release's merged kernels lie."""
        return self.served / f"{name}{_SUFFIX}"

    def release_names(self) -> list[str]:
        """Return the names of all kept releases, ascending by number."""
        stems = [p.stem for p in self.releases.glob(f"*{_SUFFIX}")]
        names = [stem for stem in stems if _NAME.match(stem)]
        return sorted(names, key=lambda name: (int(name.split("-")[0]), name))

    def own_file(self, name: str) -> Path:
        """Return where the kernels of a release with what is the device's own lie."""
        return self.own / f"{name}{_SUFFIX}"

    def identity(self, which: str = CURRENT) -> tuple[int, ...] | None:
        """Return what changes with every swap, for one ``stat``; None when there is nothing."""
        return identity_of(self.path / which)

    def pointer(self, which: str) -> Pointer | None:
        """Read ``current`` or ``last-good``; None when there is none.

        Raises:
            StorageError: ``pointer-damaged``.
        """
        path = self.path / which
        try:
            with open(path, "rb") as file:
                return Pointer.model_validate_json(file.read(_MAX_POINTER_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            what = str(error).splitlines()[0]
            raise StorageError(
                "pointer-damaged",
                f"{path} does not name a served model: {what}",
                "Start the agent: it falls back to what is whole.",
            ) from error

    def readable_pointer(self, which: str) -> Pointer | None:
        """Read a pointer; None also when it is damaged."""
        try:
            return self.pointer(which)
        except StorageError:
            return None

    def point(self, which: str, pointer: Pointer) -> None:
        """Swap ``current`` or ``last-good`` by one rename.

        Raises:
            StorageError: When it could not be written; then the old one stands, unless only the
                last flush of the folder failed.
        """
        write_json(self.path / which, pointer.model_dump(mode="json"))

    def named(self) -> set[str]:
        """Return the names that the two pointers hold."""
        pointers = (self.readable_pointer(which) for which in (CURRENT, LAST_GOOD))
        return {pointer.name for pointer in pointers if pointer is not None}

    def sweep(self) -> list[str]:
        """Remove what interrupted writes left and merged kernels that no pointer names.

        Call it under the lock only: it takes other writers' temporary files for leftovers.
        """
        swept = [
            path
            for folder in (self.path, self.bases, self.releases, self.served, self.own)
            for path in folder.glob(".*.tmp")
        ]
        # Without a readable pointer nobody knows what is old.
        if self.readable_pointer(CURRENT) is not None:
            named = self.named()
            swept += [p for p in self.served.glob(f"*{_SUFFIX}") if p.stem not in named]
        for path in swept:
            path.unlink(missing_ok=True)
        return sorted(path.name for path in swept)

    def sweep_releases(self, keep: int, also: str) -> None:
        """Remove the oldest releases beyond ``keep``; never one that is named or ``also``."""
        spared = self.named() | {also}
        old = [name for name in self.release_names()[:-keep] if name not in spared]
        for name in old:
            self.release_file(name).unlink(missing_ok=True)

    def sweep_bases(self, spared: Collection[str]) -> None:
        """Remove the bases that came later than the first, but for the ``spared`` digests.

        The newest stays too: what it was sent or added for may be still to come.
        """
        files = sorted(self.base_files(), key=lambda path: path.stat().st_mtime_ns)
        kept = {self.base_file(digest) for digest in spared} | set(files[-1:])
        for path in files:
            if path not in kept:
                path.unlink(missing_ok=True)

    def starts_begun(self, name: str) -> int:
        """Note one more start-up with ``name`` and return how many never ended, this one included.

        Raises:
            StorageError: When the note could not be written.
        """
        path = self.path / _STARTING
        count = 1
        if path.is_file():
            noted, _, before = path.read_text(errors="replace")[:_MAX_POINTER_BYTES].partition(" ")
            count += int(before) if noted == name and before.isdigit() else 0
        write_text(path, f"{name} {count}")
        return count

    def start_ended(self) -> None:
        """Forget the notes of start-ups: one has ended well."""
        (self.path / _STARTING).unlink(missing_ok=True)

    @contextmanager
    def locked(self, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
        """Hold the folder for writing: one agent or command at a time, readers never wait.

        Raises:
            StorageError: ``no-model`` when the folder is not there, ``model-busy`` after
                ``wait_s`` seconds.
        """
        try:
            # The folder itself is locked, so that a disk that is read-only can be too.
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise StorageError(
                "no-model",
                f"there is no model folder {self.path}",
                "Install a base first: fleet-device init --base FILE",
            ) from error
        try:
            _lock(descriptor, self.path, wait_s)
            yield
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise StorageError(
                    "model-busy",
                    f"another process has been changing {path} for {wait_s:g} s",
                    "Wait for it, or see what it does: fleet-device status",
                ) from error
            time.sleep(_LOCK_PAUSE_S)
