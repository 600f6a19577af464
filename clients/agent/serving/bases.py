"""The bases that a device holds: the first, for life, and those that releases brought along.

    STATE/model/base.safetensors            the one that it was set up with
    STATE/model/bases/DIGEST.safetensors    later ones, while a kept release is of them

Which of them is in use follows from what is served, so that the swap of ``current`` moves both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.agent.serving.folder import CURRENT, ModelFolder
from fleet.adapt.base import Base, BaseRecord, load_base, save_base
from fleet.adapt.merge import merge
from fleet.adapt.network import folded_network, parameters_of
from fleet.adapt.state import CoreState
from fleet.errors import FleetError, MismatchError, StorageError
from fleet.federate.wire import BASE_MISSING
from fleet.files import sync_directory
from fleet.peft.registry import find

__all__ = ["MOST_OPENED", "Bases", "Opened"]

MOST_OPENED = 3
"""Bases beside the first that stay in memory: the one in use, the one before, one that came."""
MOST_CLASSES = 256
"""As many as an evaluation's counts may have."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A base with its folded network, and that network's parameters by name."""

    base: Base
    network: nn.Module
    parameters: Mapping[str, NDArray[Any]]

    @classmethod
    def of(cls, base: Base) -> Opened:
        """Fold a base's network.

        Raises:
            ModelError: ``unknown-model``.
        """
        network = folded_network(base)
        return cls(base, network, parameters_of(network))


class Bases:
    """Reads and keeps bases; whoever writes holds the folder's lock.

    Args:
        folder: The model folder.
    """

    def __init__(self, folder: ModelFolder) -> None:
        self._folder = folder
        self._first: Opened | None = None
        self._later: dict[str, Opened] = {}
        self._unsaved = ""

    @property
    def first(self) -> Base:
        """The base that the device was set up with, read and verified once.

        Raises:
            StorageError: ``no-base`` or ``base-damaged``.
        """
        return self._opened_first().base

    def is_first(self, digest: str) -> bool:
        """Tell whether a base is the one that the device was set up with.

        Raises:
            StorageError: As :attr:`first`.
        """
        return digest not in self._later and self.first.digest == digest

    def in_use(self) -> Opened:
        """Return the base of what is served, or the first.

        Raises:
            StorageError: ``no-base`` or ``base-damaged``.
            MismatchError: ``base-missing``.
        """
        current = self._folder.readable_pointer(CURRENT)
        if current is None or not current.base:
            return self._opened_first()
        return self.opened(current.base)

    def opened(self, digest: str) -> Opened:
        """Return a base that the device holds, in use or not.

        Raises:
            MismatchError: ``base-missing`` where it holds none of that digest.
            StorageError: ``no-base`` or ``base-damaged`` of the first, where that is in use.
        """
        if digest in self._later:
            return self._later[digest]
        found = self._read_later(digest) or self._first_if_whole()
        if found is not None and found.base.digest == digest:
            return found
        raise MismatchError(
            BASE_MISSING,
            f"this device holds no base {digest[:12]}…",
            "The server sends it along; by hand: fleet-device base add FILE",
        )

    def install(self, base: Base) -> None:
        """Write the first base unless it is there.

        Raises:
            StorageError: When it could not be written.
            MismatchError: ``other-base`` when another one is there.
        """
        if not self._folder.base.exists():
            save_base(base, self._folder.base)
            self._first = None
        elif base.digest != self.first.digest:
            own = self.first.digest
            raise MismatchError(
                "other-base",
                f"this device is set up with base {own[:12]}…, not {base.digest[:12]}…",
                "A release of another base brings it along; by hand: fleet-device base add FILE",
            )

    def try_on(self, base: Base) -> None:
        """Hold a base that came along with a message, in memory alone until :meth:`keep`.

        Raises:
            MismatchError: ``base-unlike`` when it cannot take the place of the one in use,
                ``base-weights`` or ``base-unsound`` when it is none.
            ModelError: ``unknown-model``.
        """
        try:
            self.opened(base.digest)
        except MismatchError:
            # In this order: nobody has vouched yet for whoever says how large the network is.
            _check_alike(self.in_use().base.record, base.record)
            opened = Opened.of(base)
            _check_sound(opened)
            self._remember(opened)
            self._unsaved = base.digest

    def keep(self, digest: str) -> bool:
        """Write a base that is held in memory alone; tells whether it was.

        Raises:
            MismatchError: As :meth:`of`.
            StorageError: When it could not be written.
        """
        opened, path = self.opened(digest), self._folder.base_file(digest)
        if opened is self._first or (path.exists() and digest != self._unsaved):
            return False
        try:
            path.parent.mkdir(exist_ok=True)
            save_base(opened.base, path)
            sync_directory(path.parent.parent)
        except OSError as error:
            raise StorageError(
                "folder-failed", f"{path.parent} could not be made: {error.strerror}", ""
            ) from error
        self._unsaved = ""
        return True

    def _read_later(self, digest: str) -> Opened | None:
        """Read a base from its file; one that is not whole is none, so that it is sent again."""
        path = self._folder.base_file(digest)
        if not path.exists():
            return None
        try:
            opened = Opened.of(load_base(path))
        except FleetError:
            return None
        if opened.base.digest == digest:
            self._remember(opened)
            return opened
        return None

    def _remember(self, opened: Opened) -> None:
        current = self._folder.readable_pointer(CURRENT)
        spared = current.base if current is not None else ""
        while len(self._later) >= MOST_OPENED:
            del self._later[next(each for each in self._later if each != spared)]
        self._later[opened.base.digest] = opened

    def _first_if_whole(self) -> Opened | None:
        """Return the first base; None when it is damaged and a later one is in use.

        It is sent again then, once the fleet goes back to it.
        """
        try:
            return self._opened_first()
        except FleetError:
            current = self._folder.readable_pointer(CURRENT)
            if current is None or not current.base:
                raise
            return None

    def _opened_first(self) -> Opened:
        if self._first is None:
            if not self._folder.base.exists():
                raise StorageError(
                    "no-base",
                    f"there is no base in {self._folder.path}",
                    "Install one: fleet-device init --base FILE",
                )
            self._first = Opened.of(load_base(self._folder.base))
        return self._first


def _check_alike(now: BaseRecord, new: BaseRecord) -> None:
    """Refuse a base that reads other windows than the device cuts, or orders classes otherwise."""
    for what, has, needs in (
        ("channels", new.channels, now.channels),
        ("rate", new.rate_hz, now.rate_hz),
        ("window", new.window, now.window),
        ("stride", new.stride, now.stride),
        ("first classes", *_common(new.labels, now.labels)),
        ("classes beyond 256", new.labels[MOST_CLASSES:], ()),
    ):
        if has != needs:
            raise MismatchError(
                "base-unlike",
                f"a base came with {what} {has}, this device works with {needs}",
                "Make it from the one that the fleet uses: fleet base rebase or fleet base grow",
            )


def _check_sound(opened: Opened) -> None:
    """Refuse a base in whose frames nothing can be merged or trained, before it is relied on."""
    try:
        layout = find("core").layout(opened.network, opened.base.frames)
        state = CoreState.from_flat(layout, np.ones(layout.size, np.float32))
        merge(opened.parameters, opened.base.frames, state)
        model = opened.base.record.model
        attached = find("core").attach(
            opened.network, opened.base.frames, state, dtype=torch.float32
        )
        with torch.inference_mode():
            attached.module(torch.zeros(1, model.channels, model.window))
    except (AttributeError, IndexError, KeyError, RuntimeError, ValueError, FleetError) as error:
        raise MismatchError(
            "base-unsound", f"the base {opened.base.digest[:12]}… cannot be merged: {error}"
        ) from error


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    least = min(len(one), len(other))
    return one[:least], other[:least]
