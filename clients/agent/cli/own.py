"""What the commands about a device's own data share: a look into its store, and a confirmation."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fleet.errors import InputError

if TYPE_CHECKING:
    from clients.agent.serving.folder import ModelFolder
    from clients.agent.store import Store

__all__ = ["check_confirmed", "read_store", "standing_of"]

T = TypeVar("T")


def read_store(state: Path, read: Callable[[Store], T]) -> T | None:
    """Return what is read in the device's store; None where there is no store yet.

    Raises:
        StorageError: See :func:`clients.agent.store.open_reader`.
    """
    from clients.agent.store.store import FILE_NAME, open_reader

    if not (state / FILE_NAME).is_file():
        return None
    with open_reader(state, clock=time.time) as store:
        return read(store)


def standing_of(
    state: Path, standing: Callable[[Store, ModelFolder, bool], dict[str, Any]], on: bool
) -> dict[str, Any] | None:
    """Return what a summary says of the device; None where there is no store yet.

    Args:
        state: State directory.
        standing: ``standing`` of ``clients.agent.private.summary``, or of ``calibrating.summary``.
        on: Whether the owner wants what it speaks of.

    Raises:
        StorageError: As :func:`read_store`.
    """
    from clients.agent.serving.folder import ModelFolder

    return read_store(state, lambda store: standing(store, ModelFolder(state), on))


def check_confirmed(yes: bool, what: str, command: str) -> None:
    """Refuse what cannot be taken back unless it was confirmed.

    Args:
        yes: Whether it was.
        what: What would be done, as the beginning of a sentence.
        command: The command line that does it, without its ``--yes``.

    Raises:
        InputError: ``not-confirmed``.
    """
    if not yes:
        raise InputError(
            "not-confirmed",
            f"{what} cannot be taken back, so it needs a confirmation",
            f"{command} --yes",
        )
