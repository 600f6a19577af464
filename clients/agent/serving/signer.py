"""Whose the served release is, by what is kept of it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from clients.agent.serving.folder import CURRENT, ModelFolder
from clients.agent.serving.kept import load_kept
from fleet.errors import FleetError

__all__ = ["served_unsigned"]


def served_unsigned(state_dir: Path, keys: Collection[str]) -> int | None:
    """Return the number of the served release where none of some keys signed it.

    A release from before a key was pinned, or by a key that is pinned no more, is served until
    another is taken.

    Args:
        state_dir: The device's state directory.
        keys: Ids of the pinned keys; with none nothing is verified.

    Returns:
        None when one of them signed it, when it is the base that the device was set up with, and
        when nothing that can be read is served: the check of the models says the rest.
    """
    folder = ModelFolder(state_dir)
    pointer = folder.readable_pointer(CURRENT)
    if not keys or pointer is None:
        return None
    try:
        kept = load_kept(folder.release_file(pointer.name))
    except FleetError:
        return None
    moved = kept.moved or bool(pointer.base)
    return kept.number if moved and kept.signed_by not in keys else None
