"""The line of bases and releases of a continual run, on disk as it grows."""

from __future__ import annotations

from pathlib import Path

from clients.agent.learner import Workbench
from fleet.adapt.base import Base, load_base, save_base
from fleet.adapt.state import CoreState
from fleet.continual.growth import carried_release, grown
from fleet.federate.releases import Release, first_release, load_release, save_release
from server.store import RunFolder

__all__ = ["Chain", "Place"]

Place = tuple[int, int]
"""Which base of a run, from 0, and which release."""


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
        return RunFolder(self.folder / f"base-{self.number:02d}")

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

    def go_to(self, place: Place) -> None:
        """Go on behind a release."""
        self.number = place[0]
        self.release = load_release(self._release_path(place))

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
        moved = carried_release(self.release, base, self.bench.layout(self.method))
        self.release = self._first(moved)
        return True

    def _first(self, release: Release) -> Release:
        path = self._release_path((self.number, release.number))
        if not path.exists():
            save_release(release, path)
        return release

    def _base_path(self, number: int) -> Path:
        return self.folder / f"base-{number:02d}" / "base.safetensors"

    def _release_path(self, place: Place) -> Path:
        number, release = place
        return self.folder / f"base-{number:02d}" / "releases" / f"{release:06d}.safetensors"
