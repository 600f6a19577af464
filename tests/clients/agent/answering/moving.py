"""Bases that a fleet moves to, the messages that bring them, and all that a device keeps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from clients.agent.serving.folder import ModelFolder
from clients.agent.serving.serve import Serving
from clients.agent.store import SplitRule, WindowBatch, open_store
from fleet.adapt.attach import make_frames
from fleet.adapt.base import Base, bytes_of_base, save_base
from fleet.adapt.digest import digest_arrays
from fleet.adapt.network import folded_network
from fleet.continual.growth import carried_release, grown, rebased, rebased_release
from fleet.federate.releases import Release
from fleet.federate.served import merge_release
from fleet.federate.wire import Payload, with_base
from tests.clients.agent.answering.devices import NOON, fill, release_message
from tests.clients.agent.serving.factories import LABELS, chain_of, layout_of, raw_windows

__all__ = [
    "NEW",
    "Move",
    "files_of",
    "growth_of",
    "kernels_of",
    "later_bases",
    "of_another_class",
    "rebase_of",
    "set_up_with",
]

NEW = "jump"
"""A class that only a grown base knows."""


@dataclass(frozen=True)
class Move:
    """Another base, and the releases of it from the one on that a fleet moves with."""

    base: Base
    release: Release

    @cached_property
    def content(self) -> bytes:
        return bytes_of_base(self.base)

    @cached_property
    def later(self) -> Release:
        """A release that moves the new base's kernels."""
        moved = chain_of(self.base, 1, step=0.02)[1]
        return replace(moved, number=self.release.number + 1, parent=self.release.digest)

    @property
    def releases(self) -> tuple[Release, Release]:
        return self.release, self.later

    def message(self, release: Release | None = None) -> Payload:
        """Return what brings a release together with the base; the first one by default."""
        return with_base(release_message(release or self.release), self.content)


def rebase_of(base: Base, release: Release) -> Move:
    """Move a base's kernels to where a release has brought them, with frames of their own."""
    moved = rebased(base, release.state, base.frames)
    new = replace(moved, frames=make_frames(folded_network(moved), "svd", 2))
    return Move(new, rebased_release(release, new, layout_of(new)))


def growth_of(base: Base, release: Release) -> Move:
    """Append a class to a base; the release is carried over."""
    new = grown(base, (*LABELS, NEW), seed=3)
    return Move(new, carried_release(release, new, layout_of(new)))


def kernels_of(base: Base, release: Release) -> str:
    """Digest of what every device serves of a release, by the server's own merge."""
    return digest_arrays(merge_release(base, release))


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file under a folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def later_bases(state: Path) -> list[str]:
    """Names of all that lies where later bases do, leftovers of writes as well."""
    return sorted(path.name for path in ModelFolder(state).bases.glob("*"))


def set_up_with(base: Base, folder: Path) -> Path:
    """Return the state of a device that was set up with a base by hand, with the usual windows."""
    folder.mkdir(parents=True)
    save_base(base, folder / "base.safetensors")
    state = folder / "state"
    Serving(state).install_base(folder / "base.safetensors")
    fill(state)
    return state


def of_another_class(state: Path, count: int = 8, side: str = "train") -> None:
    """Put windows of a class that the first base does not know into a device's store."""
    start = np.arange(count, dtype=np.float64) * 10 + 1e6 * len(side)
    with open_store(state, clock=NOON.timestamp) as store:
        batch = WindowBatch(start_s=start, end_s=start + 1, signals=raw_windows(count, seed=7))
        store.windows.add("ada", side, batch, SplitRule(kind=side))  # type: ignore[arg-type]
        for at in start:
            store.labels.range("ada", float(at), float(at) + 1, NEW, "ada")
