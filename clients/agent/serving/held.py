"""What a device holds: immutable bases, and the releases that it can merge from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from clients.agent.serving.bases import Bases
from clients.agent.serving.folder import ModelFolder
from clients.agent.serving.kept import KeptRelease, load_kept
from clients.agent.serving.whole import (
    Whole,
    check_finite,
    open_served,
    pointer_to,
    save_served,
)
from fleet.adapt.base import Base
from fleet.adapt.digest import digest_json
from fleet.adapt.fold import norms_behind
from fleet.adapt.merge import merge
from fleet.adapt.network import raw_network
from fleet.adapt.state import Layout
from fleet.continual.calibration import Calibration, absorbed
from fleet.errors import FleetError, InputError, MismatchError
from fleet.peft.registry import find

__all__ = ["Held", "state_under"]


def state_under(state: str, calibration: Calibration | None) -> str:
    """Return what kernels are named by: a core state's digest, and that of own statistics."""
    return state if calibration is None else digest_json([state, calibration.digest])


class Held:
    """Bases and kept releases of one device; whoever writes holds the folder's lock.

    Args:
        folder: The model folder.

    Attributes:
        bases: The bases.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder
        self.bases = Bases(folder)
        self._layers: tuple[str, Mapping[str, str]] = ("", {})

    @property
    def base(self) -> Base:
        """The base in use: that of what is served, or the first.

        Raises:
            StorageError: ``no-base`` or ``base-damaged``.
        """
        return self.bases.in_use().base

    def layout(self, method: str, base: Base | None = None) -> Layout:
        """Return the layout of what ``method`` trains on a base; None for the one in use.

        Raises:
            MismatchError: ``base-missing``.
            InputError: ``unknown-method``.
        """
        opened = self.bases.in_use() if base is None else self.bases.opened(base.digest)
        return find(method).layout(opened.network, opened.base.frames)

    def kept(self, wanted: int | str) -> KeptRelease:
        """Read a kept release by number, or by the beginning of its name.

        Raises:
            InputError: ``no-such-release`` or ``ambiguous-release``.
            StorageError: When its file is damaged.
        """
        if wanted in (0, "0"):
            return KeptRelease.bare(self.bases.first)
        names = self._folder.release_names()
        if str(wanted).isdigit():
            found = [name for name in names if int(name.split("-")[0]) == int(wanted)]
        else:
            found = [name for name in names if name.startswith(str(wanted))]
        if len(found) != 1:
            raise InputError(
                "ambiguous-release" if found else "no-such-release",
                f"{wanted} names {len(found)} of the kept releases: "
                f"{', '.join(found or names) or 'there is none'}",
                "See them: fleet-device release list",
            )
        return load_kept(self._folder.release_file(found[0]))

    def merged(
        self,
        release: KeptRelease,
        folder: Path | None = None,
        calibration: Calibration | None = None,
    ) -> Whole:
        """Merge a release, write the kernels unless they lie there whole, and read them back.

        Call it under the folder's lock.

        Args:
            release: What is merged.
            folder: Where the kernels go; None for ``served``.
            calibration: The device's own statistics, which go into the kernels; None for none.

        Raises:
            MismatchError: ``base-missing``, ``wrong-frame``, or why it cannot be merged or served.
            StorageError: When it could not be written, or not read back.
        """
        self.check_fits(release)
        opened = self.bases.opened(release.base)
        base = opened.base
        moved = merge(opened.parameters, base.frames, release.state)
        if calibration is not None:
            moved = absorbed(moved, calibration, self._layers_before(base))
        check_finite(moved, release.name)
        pointer = pointer_to(release, moved)
        state = state_under(pointer.state, calibration)
        later = "" if self.bases.is_first(base.digest) else base.digest
        pointer = pointer.model_copy(update={"state": state, "base": later})
        named = self._folder.served_file(pointer.name)
        path = named if folder is None else folder / named.name
        try:
            return open_served(path, pointer)
        except FleetError:
            save_served(base, pointer, moved, path)
        return open_served(path, pointer)

    def check_fits(self, release: KeptRelease) -> None:
        """Refuse what is of no base that the device holds.

        Raises:
            MismatchError: ``base-missing``, ``wrong-frame`` or ``state-not-finite``.
        """
        own = self.bases.opened(release.base).base.frame_digest
        if own != release.frame:
            raise MismatchError(
                "wrong-frame",
                f"release {release.number} is of frame {release.frame[:12]}…, its base has "
                f"{own[:12]}…",
                "Install the base that the fleet uses.",
            )
        if not release.state.finite:
            raise MismatchError(
                "state-not-finite", f"release {release.number} holds NaN or infinity"
            )

    def _layers_before(self, base: Base) -> Mapping[str, str]:
        """Return, by each batch norm's name, the convolution that it folded into."""
        if self._layers[0] != base.digest:
            behind = norms_behind(raw_network(base))
            self._layers = base.digest, {norm: layer for layer, norm in behind.items()}
        return self._layers[1]
