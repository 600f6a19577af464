"""Official downloads as folders, whether unpacked or still an archive."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from numpy.typing import NDArray

from fleet.errors import DataError, StorageError
from fleet.har.checks import bounded

__all__ = ["find_folder", "finish", "numbers", "opened"]

# What archives and decompressors raise for damaged data.
DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error),
    *(EOFError, NotImplementedError, RuntimeError),
)
MAX_MEMBERS = 50_000
MAX_UNPACKED_BYTES = 8 * 2**30
MAX_DEPTH = 4
MAC_FOLDER = "__MACOSX"

Wanted = Callable[[PurePosixPath], bool]
# One archive member: its path, its size in bytes, and how to open it (None for a link or device).
Member = tuple[PurePosixPath, int, "Callable[[], IO[bytes]] | None"]


@contextmanager
def opened(root: Path, wanted: Wanted) -> Iterator[Path]:
    """Yield a folder with the download: ``root`` itself, or what was wanted of an archive.

    Args:
        root: A folder, or a ``.tar``, ``.tar.*``, ``.tgz`` or ``.zip`` file. An archive is unpacked
            to a temporary folder, which is removed at the end of the block.
        wanted: Tells by its path which member to unpack.

    Raises:
        DataError: ``data-missing``, ``archive-unsafe`` (absolute path, ``..`` or a link),
            ``archive-too-large`` or ``archive-corrupt``.
        StorageError: ``unpack-failed``: the temporary folder cannot hold it.
    """
    if root.is_dir():
        yield root
        return
    if not root.is_file():
        raise DataError(
            "data-missing",
            f"there is no folder or archive {root}",
            "Give the folder that the official archive unpacks to, or the archive itself.",
        )
    with tempfile.TemporaryDirectory(prefix="corefleet-") as temporary:
        target = Path(temporary)
        try:
            _unpack(root, target, wanted)
        except DAMAGED as error:
            raise _corrupt(root, error) from error
        except OSError as error:
            # Without a number it comes from a decompressor that met damaged data.
            if error.errno is None:
                raise _corrupt(root, error) from error
            raise StorageError(
                "unpack-failed",
                f"{root} could not be unpacked to {target}: {error.strerror}",
                "Free some space there, or point TMPDIR to another disk.",
            ) from error
        yield target


def find_folder(folder: Path, matches: Callable[[Path], bool], root: Path, layout: str) -> Path:
    """Return the folder that matches, at ``folder`` or at most four levels below it.

    Args:
        folder: Where to start; official archives come with and without their top folder.
        matches: Tells whether a folder is the one.
        root: What the user gave, for the error.
        layout: What was looked for, as a sentence for the error.

    Raises:
        DataError: ``layout-unknown`` when none matches or a folder cannot be listed.
    """
    try:
        level = [folder]
        for _ in range(MAX_DEPTH + 1):
            for candidate in level:
                if matches(candidate):
                    return candidate
            level = [child for parent in level for child in _subfolders(parent)]
    except OSError as error:
        raise DataError(
            "layout-unknown", f"{error.filename} cannot be listed ({error.strerror})", layout
        ) from error
    raise DataError("layout-unknown", f"{root} does not hold the official layout", layout)


def numbers(
    path: Path, columns: int, delimiter: str | None = None, header: str = ""
) -> NDArray[np.float64]:
    """Read a table of finite numbers.

    Args:
        path: A text file.
        columns: How many numbers stand in each row.
        delimiter: Between columns; ``None`` for blanks.
        header: The first line that the file must have; empty for none.

    Returns:
        float64 ``[T, columns]``, T >= 1.

    Raises:
        ValueError: The rule that the file breaks, without its name.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError("is missing" if not path.exists() else str(error.strerror)) from error
    if header:
        if not lines or lines[0].strip() != header:
            raise ValueError(f"starts with {lines[0][:60]!r}" if lines else "is empty")
        lines = lines[1:]
    if not any(line.strip() for line in lines):
        raise ValueError("holds no rows")
    rows = np.loadtxt(lines, dtype=np.float64, delimiter=delimiter, comments=None, ndmin=2)
    if rows.shape[1] != columns:
        raise ValueError(f"has {rows.shape[1]} columns, not {columns}")
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(broken):
        raise ValueError(f"holds NaN or Inf in {len(broken)} rows, first in row {broken[0] + 1}")
    return rows


def finish(problems: list[str], root: Path, hint: str) -> None:
    """Raise ``download-broken`` with all ``problems``, if there are any."""
    if problems:
        raise DataError.listing("download-broken", str(root), bounded(problems), hint)


def _subfolders(folder: Path) -> list[Path]:
    return [
        child
        for child in sorted(folder.iterdir())
        if child.is_dir() and child.name != MAC_FOLDER and not child.name.startswith(".")
    ]


def _unpack(path: Path, target: Path, wanted: Wanted) -> None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _take(path, _zip_members(archive), target, wanted)
    else:
        # A stream is read once from front to back: seeking in an xz file decompresses it again.
        with tarfile.open(path, "r|*") as archive:
            _take(path, _tar_members(archive), target, wanted)


def _zip_members(archive: zipfile.ZipFile) -> Iterator[Member]:
    for entry in archive.infolist():
        if not entry.is_dir():
            link = (entry.external_attr >> 16) & 0o170000 == 0o120000
            opener = None if link else partial(archive.open, entry)
            yield PurePosixPath(entry.filename), entry.file_size, opener


def _tar_members(archive: tarfile.TarFile) -> Iterator[Member]:
    for entry in archive:
        if not entry.isdir():
            opener = partial(_tar_file, archive, entry) if entry.isfile() else None
            yield PurePosixPath(entry.name), entry.size, opener


def _tar_file(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(entry)
    if file is None:
        raise tarfile.ReadError(f"{entry.name} is not a file")
    return file


def _take(path: Path, members: Iterator[Member], target: Path, wanted: Wanted) -> None:
    taken_bytes = 0
    for count, (name, size, opener) in enumerate(members, start=1):
        if name.is_absolute() or ".." in name.parts or "\\" in str(name) or "\0" in str(name):
            raise _unsafe(path, f"its member {str(name)[:80]!r} leads out of the archive")
        if MAC_FOLDER in name.parts or name.name.startswith("._") or not wanted(name):
            size = 0
        elif opener is None:
            raise _unsafe(path, f"its member {str(name)[:80]!r} is a link or device, not a file")
        taken_bytes += size
        if count > MAX_MEMBERS or taken_bytes > MAX_UNPACKED_BYTES:
            raise DataError(
                "archive-too-large",
                f"{path} exceeds {MAX_MEMBERS} members or {MAX_UNPACKED_BYTES} unpacked bytes",
                "Unpack it yourself and give the folder.",
            )
        if size and opener is not None:
            destination = target.joinpath(*name.parts)
            destination.parent.mkdir(parents=True, exist_ok=True)
            with opener() as source, open(destination, "wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)


def _unsafe(path: Path, what: str) -> DataError:
    return DataError(
        "archive-unsafe", f"{path} is refused: {what}", "Fetch the official archive again."
    )


def _corrupt(path: Path, error: Exception) -> DataError:
    return DataError(
        "archive-corrupt",
        f"{path} is truncated, damaged or no tar or zip archive: {error}",
        "Fetch it again, or unpack it yourself and give the folder.",
    )
