"""What a device holds: the immutable base, and the releases it can merge from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from clients.agent.serving.folder import ModelFolder
from clients.agent.serving.kept import KeptRelease, load_kept
from clients.agent.serving.whole import (
    Whole,
    check_finite,
    open_served,
    pointer_to,
    save_served,
)
from fleet.adapt.base import Base, load_base, save_base
from fleet.adapt.digest import digest_json
from fleet.adapt.fold import norms_behind
from fleet.adapt.merge import merge
from fleet.adapt.network import folded_network, parameters_of, raw_network
from fleet.adapt.state import Layout
from fleet.continual.calibration import Calibration, absorbed
from fleet.errors import FleetError, InputError, MismatchError, StorageError
from fleet.peft.registry import find

__all__ = ["Held", "state_under"]

_Folded = tuple[nn.Module, Mapping[str, NDArray[Any]]]


def state_under(state: str, calibration: Calibration | None) -> str:
    """Return what kernels are named by: a core state's digest, and that of own statistics."""
    return state if calibration is None else digest_json([state, calibration.digest])


class Held:
    """Base and kept releases of one device; whoever writes holds the folder's lock.

    Args:
        folder: The model folder.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder
        self._loaded: tuple[Base, _Folded] | None = None
        self._layers: tuple[str, Mapping[str, str]] = ("", {})

    @property
    def base(self) -> Base:
        """The installed base, read and verified once.

        Raises:
            StorageError: ``no-base`` or ``base-damaged``.
        """
        return self._opened()[0]

    def layout(self, method: str) -> Layout:
        """Return the layout of what ``method`` trains on this base."""
        base, (network, _) = self._opened()
        return find(method).layout(network, base.frames)

    def install(self, base: Base) -> None:
        """Write the base unless it is there.

        Raises:
            StorageError: When it could not be written.
            MismatchError: ``other-base`` when another one is there.
        """
        if not self._folder.base.exists():
            save_base(base, self._folder.base)
            self._loaded = None
        elif base.digest != self.base.digest:
            own = self.base.digest
            raise MismatchError(
                "other-base",
                f"this device is set up with base {own[:12]}…, not {base.digest[:12]}…",
                "Use another state directory; a device keeps its base for life.",
            )

    def kept(self, wanted: int | str) -> KeptRelease:
        """Read a kept release by number, or by the beginning of its name.

        Raises:
            InputError: ``no-such-release`` or ``ambiguous-release``.
            StorageError: When its file is damaged.
        """
        if wanted in (0, "0"):
            return KeptRelease.bare(self.base)
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
            MismatchError: ``wrong-base``, ``wrong-frame``, or why it cannot be merged or served.
            StorageError: When it could not be written, or not read back.
        """
        self.check_fits(release)
        base, (_, parameters) = self._opened()
        moved = merge(parameters, base.frames, release.state)
        if calibration is not None:
            moved = absorbed(moved, calibration, self._layers_before())
        check_finite(moved, release.name)
        pointer = pointer_to(release, moved)
        state = state_under(pointer.state, calibration)
        pointer = pointer.model_copy(update={"state": state})
        named = self._folder.served_file(pointer.name)
        path = named if folder is None else folder / named.name
        try:
            return open_served(path, pointer)
        except FleetError:
            save_served(base, pointer, moved, path)
        return open_served(path, pointer)

    def check_fits(self, release: KeptRelease) -> None:
        """Refuse what is not of this base.

        Raises:
            MismatchError: ``wrong-base``, ``wrong-frame`` or ``state-not-finite``.
        """
        own = self.base
        for what, mine, its in (
            ("base", own.digest, release.base),
            ("frame", own.frame_digest, release.frame),
        ):
            if mine != its:
                raise MismatchError(
                    f"wrong-{what}",
                    f"release {release.number} is of {what} {its[:12]}…, this device has "
                    f"{mine[:12]}…",
                    "Install the base that the fleet uses.",
                )
        if not release.state.finite:
            raise MismatchError(
                "state-not-finite", f"release {release.number} holds NaN or infinity"
            )

    def _layers_before(self) -> Mapping[str, str]:
        """Return, by each batch norm's name, the convolution that it folded into."""
        base = self.base
        if self._layers[0] != base.digest:
            behind = norms_behind(raw_network(base))
            self._layers = base.digest, {norm: layer for layer, norm in behind.items()}
        return self._layers[1]

    def _opened(self) -> tuple[Base, _Folded]:
        if self._loaded is None:
            if not self._folder.base.exists():
                raise StorageError(
                    "no-base",
                    f"there is no base in {self._folder.path}",
                    "Install one: fleet-device init --base FILE",
                )
            base = load_base(self._folder.base)
            network = folded_network(base)
            self._loaded = base, (network, parameters_of(network))
        return self._loaded
