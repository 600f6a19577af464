"""Windows mapped from a file: every process of a machine shares one copy, in the page cache.

Canonical files are compressed and a run may use only some of their classes, so the windows that a
run uses are written once, plain, into the user's cache and mapped from there by all who need them.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from fleet.errors import StorageError
from fleet.files import atomic_path
from fleet.har.dataset import DataSet, digest

__all__ = ["cache_folder", "mapped"]

LARGEST_FILES_HELD = 8


def cache_folder() -> Path:
    """Return where mapped windows are kept: ``$XDG_CACHE_HOME/corefleet/windows``."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "corefleet" / "windows"


def mapped(dataset: DataSet) -> DataSet:
    """Return a data set whose ``x`` is mapped, read-only, from a file named after its content.

    The file is whole or absent, and compared with ``x`` before it is trusted. Of the files that
    others left, the oldest are removed; a process that still maps one keeps it.

    Returns:
        The same data set where the cache can be neither written nor read.
    """
    try:
        path = cache_folder() / f"{digest(dataset)}.npy"
        if not _holds(path, dataset):
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.save(file, dataset.x, allow_pickle=False)
            _prune(path)
        # A plain array over the mapped memory: code that asks for ndarray meets no subclass.
        x = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (StorageError, OSError, ValueError, RuntimeError):
        return dataset  # mapping saves memory; nothing else depends on it
    return replace(dataset, x=x)


def _holds(path: Path, dataset: DataSet) -> bool:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return found.dtype == dataset.x.dtype and np.array_equal(found, dataset.x)


def _prune(kept: Path) -> None:
    files = [path for path in kept.parent.glob("*.npy") if path != kept]
    with suppress(OSError):
        files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in files[LARGEST_FILES_HELD - 1 :]:
            path.unlink()
