"""Putting what is the device's own into service beside the release, and taking it out of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from clients.agent.calibrating.kept import Kept, kept_of
from clients.agent.config import DeviceConfig
from clients.agent.serving.folder import identity_of
from clients.agent.serving.held import state_under
from clients.agent.serving.kept import KeptRelease
from clients.agent.serving.personal import note_personal, personal_of, present, withdraw
from clients.agent.serving.records import PersonalPointer, release_name
from clients.agent.serving.serve import Serving
from clients.agent.store import Store
from fleet.adapt.state import CoreState
from fleet.continual.calibration import Calibration
from fleet.errors import FleetError, StorageError

__all__ = ["Own", "Shelf"]


@dataclass(frozen=True, eq=False)
class Own:
    """What is the device's own beside a release.

    Args:
        digest: Of the private core as it is kept; empty without one.
        core: The private core; None without one.
        kept: The device's own statistics; None under the fleet's.
    """

    digest: str = ""
    core: CoreState | None = None
    kept: Kept | None = None

    def __bool__(self) -> bool:
        return self.core is not None or self.kept is not None

    @property
    def calibration(self) -> Calibration | None:
        """The statistics as maps."""
        return None if self.kept is None else Calibration.of_arrays(self.kept.arrays)


class Shelf:
    """What is served of the device's own.

    Whoever forgets, drops or turns off holds the model folder's lock meanwhile. So what is put here
    under that lock is looked up once more: it is still kept, and still wanted.

    Args:
        serving: The model folder.
        store: Where core and statistics are kept.
        config: Reads the device's configuration.
    """

    def __init__(self, serving: Serving, store: Store, config: Callable[[], DeviceConfig]) -> None:
        self._serving = serving
        self._store = store
        self._config = config
        # With the kernels' identity: they are read again once their file has changed.
        self._verified: tuple[PersonalPointer, tuple[int, ...] | None] | None = None

    def put(self, release: KeptRelease, own: Own) -> bool:
        """Serve a release with what is the device's own.

        Returns:
            Whether it is served now and was not before.

        Raises:
            MismatchError: Why it cannot be merged or served; the release alone is served then.
            StorageError: When it could not be written.
        """
        state = release.state if own.core is None else release.state + own.core
        total = replace(release, state=state, published="", signed_by="")
        calibration = own.calibration
        name = release_name(total.number, state_under(state.digest, calibration))
        before = personal_of(self._serving.folder)
        kernels = self._serving.folder.own_file(name)
        found = identity_of(kernels)
        if before and (before, found) == self._verified and before.own.name == name:
            return False
        with self._serving.locked():
            current = self._serving.served
            if current is None or current.name != release.name or not self._wanted(own):
                return False
            try:
                self._make_folder()
                folder = self._serving.folder.own
                whole = self._serving.held.merged(total, folder, calibration)
            except FleetError:
                withdraw(self._serving.folder)
                raise
            pointer = PersonalPointer(
                beside=current,
                own=whole.pointer,
                core=own.core is not None,
                statistics=own.kept.digest if own.kept else "",
            )
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

    def _wanted(self, own: Own) -> bool:
        config = self._config()
        with suppress(StorageError):
            if own.core is not None:
                row = self._store.personal.get()
                if not config.personal.on or row is None or row.digest != own.digest:
                    return False
            if own.kept is None:
                return True
            kept = kept_of(self._store)
            return config.statistics.own and kept is not None and kept.digest == own.kept.digest
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
