"""Every device's windows in plain files, for sides that bring no data code of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleet.errors import DataError
from fleet.har.normalise import Normalisation
from fleet.har.virtual import VirtualFleet

__all__ = ["Windows", "read_windows", "write_windows"]


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of all devices, mapped from files.

    Args:
        names: Device names by partition id.
        train_x: ``(windows, channels, samples)`` float32, one device after the other.
        train_y: ``(windows,)`` int64.
        train_starts: ``(devices + 1,)`` int64; a device's windows are those between two of them.
        test_x: As ``train_x``.
        test_y: As ``train_y``.
    """

    names: tuple[str, ...]
    train_x: NDArray[np.float32]
    train_y: NDArray[np.int64]
    train_starts: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int64]

    def train(self, device: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return a device's training windows and labels."""
        rows = slice(*self.train_starts[device : device + 2])
        return self.train_x[rows], self.train_y[rows]


def write_windows(folder: Path, fleet: VirtualFleet, normalisation: Normalisation) -> None:
    """Write the windows of a fleet, one device in memory at a time.

    Raises:
        DataError: ``no-windows`` when a device has nothing to train on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shares = [fleet.share(partition) for partition in range(len(fleet))]
    empty = [share.name for share in shares if not len(share.train)]
    if empty:
        raise DataError("no-windows", f"{', '.join(empty[:5])} have no windows to train on")
    shape = (len(fleet.population.dataset.channels), fleet.population.dataset.window)
    starts = {
        "train": np.cumsum([0, *(len(share.train) for share in shares)]),
        "test": np.cumsum([0, *(len(share.test) for share in shares)]),
    }
    files = {
        part: (
            _file(folder, f"{part}_x", np.float32, (int(ends[-1]), *shape)),
            _file(folder, f"{part}_y", np.int64, (int(ends[-1]),)),
        )
        for part, ends in starts.items()
    }
    for partition in range(len(fleet)):
        both = zip(files, fleet.windows(partition, normalisation), strict=True)
        for part, windows in both:
            rows = slice(*starts[part][partition : partition + 2])
            files[part][0][rows], files[part][1][rows] = windows.x, windows.y
    np.save(folder / "train_starts.npy", starts["train"].astype(np.int64), allow_pickle=False)
    np.save(folder / "names.npy", np.array([share.name for share in shares]), allow_pickle=False)
    for arrays in files.values():
        for array in arrays:
            array.flush()


def read_windows(folder: Path) -> Windows:
    """Map what :func:`write_windows` wrote; processes of a machine share the memory."""
    names = ("train_x", "train_y", "train_starts", "test_x", "test_y")
    # Copy on write: nobody writes, and torch warns of memory that it may not write to.
    found = {
        name: np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False) for name in names
    }
    devices = np.load(folder / "names.npy", allow_pickle=False)
    return Windows(tuple(map(str, devices)), **found)


def _file(
    folder: Path, name: str, dtype: type[np.generic], shape: tuple[int, ...]
) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
    path = folder / f"{name}.npy"
    found: np.memmap[tuple[int, ...], np.dtype[np.generic]] = np.lib.format.open_memmap(
        path, mode="w+", dtype=dtype, shape=shape
    )
    return found
