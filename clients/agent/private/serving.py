"""Putting release and private core into service together, and taking them out of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from clients.agent.config import DeviceConfig
from clients.agent.serving.folder import identity_of
from clients.agent.serving.kept import KeptRelease
from clients.agent.serving.personal import note_personal, personal_of, present, withdraw
from clients.agent.serving.records import PersonalPointer
from clients.agent.serving.serve import Serving
from clients.agent.store import Store
from fleet.adapt.state import CoreState
from fleet.errors import FleetError, StorageError

__all__ = ["Shelf"]


class Shelf:
    """What is served of the private core.

    Whoever forgets, drops or turns off holds the model folder's lock meanwhile. So what is put here
    under that lock is looked up once more: it is still kept, and still wanted.

    Args:
        serving: The model folder.
        store: Where the core is kept.
        config: Reads the device's configuration.
    """

    def __init__(self, serving: Serving, store: Store, config: Callable[[], DeviceConfig]) -> None:
        self._serving = serving
        self._store = store
        self._config = config
        # With the kernels' identity: they are read again once their file has changed.
        self._verified: tuple[PersonalPointer, tuple[int, ...] | None] | None = None

    def put(self, release: KeptRelease, digest: str, core: CoreState) -> bool:
        """Serve a release with the private core of a digest.

        Returns:
            Whether it is served now and was not before.

        Raises:
            MismatchError: Why it cannot be merged or served; the release alone is served then.
            StorageError: When it could not be written.
        """
        total = KeptRelease(
            release.number, release.base, release.frame, release.method, release.state + core
        )
        before = personal_of(self._serving.folder)
        kernels = self._serving.folder.own_file(total.name)
        found = identity_of(kernels)
        if before and (before, found) == self._verified and before.own.name == total.name:
            return False
        with self._serving.locked():
            current = self._serving.served
            if current is None or current.name != release.name or not self._wanted(digest):
                return False
            try:
                self._make_folder()
                whole = self._serving.held.merged(total, self._serving.folder.own)
            except FleetError:
                withdraw(self._serving.folder)
                raise
            pointer = PersonalPointer(beside=current, own=whole.pointer)
            made = identity_of(kernels)
            new = note_personal(self._serving.folder, pointer, anew=made != found)
            self._verified = pointer, made
        return new

    def clear(self) -> None:
        """Serve the release alone.

        Raises:
            StorageError: ``personal-not-deleted`` or ``model-busy``.
        """
        self._verified = None
        if present(self._serving.folder):
            with self._serving.locked():
                withdraw(self._serving.folder)

    def _wanted(self, digest: str) -> bool:
        with suppress(StorageError):
            row = self._store.personal.get()
            return self._config().personal.on and row is not None and row.digest == digest
        return False

    def _make_folder(self) -> None:
        try:
            self._serving.folder.own.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(
                "folder-failed",
                f"{self._serving.folder.own} could not be made: {error.strerror}",
                "",
            ) from error
