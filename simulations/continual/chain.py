"""The line of bases and releases of a continual run, on disk as it grows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clients.agent.learner import Workbench
from fleet.adapt.base import Base, load_base, save_base
from fleet.adapt.state import CoreState
from fleet.continual.growth import carried_release, grown, rebased_release
from fleet.federate.releases import Release, first_release, load_release, save_release
from server.store import RunFolder

__all__ = ["FIRST", "Chain", "Place"]

# A release's state is float32 on the wire.
FLOAT_BYTES = 4

Place = tuple[int, int]
"""Which base of a run, from 0, and which release."""

FIRST: Place = (0, 0)
"""Where every run, and every device, begins."""


class Chain:
    """The bases of a run and the releases on each.

    Args:
        folder: Of the run; a base and its releases are in ``base-NN``.
        base: The first base.
        method: What is trained.
    """

    def __init__(self, folder: Path, base: Base, method: str) -> None:
        self.folder, self.method, self.number = folder, method, 0
        self._benches: dict[int, Workbench] = {}
        if not self._base_path(0).exists():
            save_base(base, self._base_path(0))
        self.release = self._first(first_release(base, method, self.bench.layout(method)))
        # The highest number so far: that of a release that was not promoted is not used again.
        self.issued = self.release.number

    @property
    def bench(self) -> Workbench:
        """What devices of the present base share."""
        return self.bench_of(self.number)

    @property
    def place(self) -> Place:
        """Where the run is."""
        return self.number, self.release.number

    @property
    def rounds(self) -> RunFolder:
        """Where releases and rounds of the present base are kept."""
        return RunFolder(self._base_folder(self.number))

    def bench_of(self, number: int) -> Workbench:
        """Return what devices of a base share.

        Raises:
            StorageError: When the base's file cannot be read.
        """
        if number not in self._benches:
            self._benches[number] = Workbench(load_base(self._base_path(number)))
        return self._benches[number]

    def state_at(self, place: Place) -> CoreState:
        """Return the core state of a release.

        Raises:
            StorageError: When it cannot be read.
        """
        return load_release(self._release_path(place)).state

    def go_to(self, place: Place, issued: int = 0) -> None:
        """Go on behind a release, where numbers up to ``issued`` are taken."""
        self.number = place[0]
        self.release = load_release(self._release_path(place))
        self.issued = max(issued, self.release.number)

    def grow(self, labels: tuple[str, ...], seed: int) -> bool:
        """Go on with a base for these classes, if it has fewer; return whether it had.

        A device makes the same base of the old one: growing needs no data.
        """
        old = self.bench.base
        if len(labels) <= len(old.record.labels):
            return False
        self.number += 1
        if not self._base_path(self.number).exists():
            save_base(grown(old, labels, seed=seed), self._base_path(self.number))
        base = self.bench.base
        self._begin(carried_release(self.release, base, self.bench.layout(self.method)))
        return True

    def rebase(self, base: Base) -> None:
        """Go on with a base that a release has been merged into, without a core."""
        self.number += 1
        if not self._base_path(self.number).exists():
            save_base(base, self._base_path(self.number))
        self._begin(rebased_release(self.release, base, self.bench.layout(self.method)))

    def bytes_to(self, number: int) -> int:
        """Return what a device needs to make a base of the one before; growing needs nothing.

        New frames are sent, and the release that the base was moved by.
        """
        before, base = self.bench_of(number - 1), self.bench_of(number).base
        if before.base.frame_digest == base.frame_digest:
            return 0
        frames = sum(frame.array.nbytes for frame in base.frames.values())
        return frames + FLOAT_BYTES * before.layout(self.method).size

    def _begin(self, release: Release) -> None:
        self.release = self._first(replace(release, number=self.issued + 1))
        self.issued = self.release.number

    def _first(self, release: Release) -> Release:
        path = self._release_path((self.number, release.number))
        if not path.exists():
            save_release(release, path)
        return release

    def _base_path(self, number: int) -> Path:
        return self._base_folder(number) / "base.safetensors"

    def _release_path(self, place: Place) -> Path:
        number, release = place
        return self._base_folder(number) / "releases" / f"{release:06d}.safetensors"

    def _base_folder(self, number: int) -> Path:
        return self.folder / f"base-{number:02d}"
