"""Forget, off and drop: from any process, beside an agent that runs; no torch is needed.

The model folder's lock is held from before the release alone is served until the store has
forgotten, so an agent cannot put back meanwhile what is being taken away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clients.agent.config import DeviceConfig, save_config
from clients.agent.serving.folder import ModelFolder
from clients.agent.serving.personal import withdraw
from clients.agent.store import Store
from clients.agent.store.records import Forgotten

__all__ = ["drop", "forget", "switch"]


def forget(state: Path, store: Store, person: str) -> Forgotten:
    """Delete what the device holds of a person, its private core included if theirs is in it.

    Raises:
        StorageError: Nothing was deleted, or not all.
    """
    with _locked(state) as folder:
        # Of kernels without a core in the store nobody knows whom they hold.
        people = store.personal.people()
        if folder is not None and (not people or person in people):
            withdraw(folder)
        return store.forget(person)


def drop(state: Path, store: Store) -> bool:
    """Delete the private core, and serve the release alone; tells whether there was one.

    Raises:
        StorageError: It could not be deleted.
    """
    with _locked(state) as folder:
        if folder is not None:
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
        with _locked(state) as folder:
            if folder is not None:
                changed |= withdraw(folder)
    return changed


@contextmanager
def _locked(state: Path) -> Iterator[ModelFolder | None]:
    """Hold the model folder for writing; None where a device has none yet."""
    folder = ModelFolder(state)
    if not folder.path.is_dir():
        yield None
        return
    with folder.locked():
        yield folder
