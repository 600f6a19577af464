"""Forget, off and drop: from any process, beside an agent that runs; no torch is needed.

The model folder's lock is held from before the release alone is served until the store has
forgotten, so an agent cannot put back meanwhile what is being taken away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clients.agent.calibrating.kept import there
from clients.agent.config import DeviceConfig, save_config
from clients.agent.serving.folder import ModelFolder
from clients.agent.serving.personal import personal_of, withdraw
from clients.agent.store import Store
from clients.agent.store.records import Forgotten

__all__ = ["drop", "forget", "locked", "switch"]


def forget(state: Path, store: Store, person: str) -> Forgotten:
    """Delete what the device holds of a person, its private core included if theirs is in it.

    Its own statistics go with anybody; they are taken anew of the windows that are left.

    Raises:
        StorageError: Nothing was deleted, or not all.
    """
    with locked(state) as folder:
        if folder is not None and _may_hold(folder, store, person):
            withdraw(folder)
        return store.forget(person)


def drop(state: Path, store: Store) -> bool:
    """Delete the private core, and serve the release alone; tells whether there was one.

    Raises:
        StorageError: It could not be deleted.
    """
    with locked(state) as folder:
        if folder is not None and _has_core(folder):
            withdraw(folder)
        return store.personal.drop()


def switch(state: Path, config: DeviceConfig, on: bool) -> bool:
    """Turn private cores on or off in the configuration; off serves the release alone at once.

    Returns:
        Whether that changed anything.

    Raises:
        StorageError: It could not be written.
    """
    changed = config.personal.on != on
    if changed:
        personal = config.personal.model_copy(update={"on": on})
        save_config(config.model_copy(update={"personal": personal}), state)
    if not on:
        with locked(state) as folder:
            if folder is not None and _has_core(folder):
                changed |= withdraw(folder)
    return changed


def _may_hold(folder: ModelFolder, store: Store, person: str) -> bool:
    """Tell whether what is served of the device's own may hold something of a person."""
    # Of kernels without a core in the store nobody knows whom they hold.
    people, noted = store.personal.people(), personal_of(folder)
    if not people or person in people or noted is None:
        return True
    return bool(noted.statistics) or there(store)


def _has_core(folder: ModelFolder) -> bool:
    """Tell whether a private core may be served: not where only statistics are noted."""
    noted = personal_of(folder)
    return noted is None or noted.core


@contextmanager
def locked(state: Path) -> Iterator[ModelFolder | None]:
    """Hold the model folder for writing; None where a device has none yet."""
    folder = ModelFolder(state)
    if not folder.path.is_dir():
        yield None
        return
    with folder.locked():
        yield folder
