"""What a device serves of its own beside the release: its private core, its own statistics, both.

    STATE/model/personal                        what is served beside which release (JSON)
    STATE/model/own/NNNNNN-STATE.safetensors    dense kernels of release and all of it together

``current`` goes on naming the release, and is what the fleet is told. A note in ``personal`` holds
for that one release: when another is swapped in, it is void, and the release answers.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from clients.agent.serving.folder import CURRENT, ModelFolder
from clients.agent.serving.records import PersonalPointer, Pointer
from fleet.errors import StorageError
from fleet.files import sync_directory, write_json

__all__ = [
    "PERSONAL",
    "note_personal",
    "personal_of",
    "present",
    "withdraw",
]

PERSONAL = "personal"
_MAX_BYTES = 4096


def personal_of(folder: ModelFolder, current: Pointer | None = None) -> PersonalPointer | None:
    """Return what is served beside a release; None when the release alone is.

    Args:
        folder: The model folder.
        current: The release; None for the one that ``current`` names.
    """
    current = folder.readable_pointer(CURRENT) if current is None else current
    try:
        with open(folder.path / PERSONAL, "rb") as file:
            found = PersonalPointer.model_validate_json(file.read(_MAX_BYTES))
    except (OSError, ValidationError):
        return None
    beside = found.beside
    if current is None or (beside.name, beside.digest) != (current.name, current.digest):
        return None
    return found


def note_personal(folder: ModelFolder, pointer: PersonalPointer, *, anew: bool = False) -> bool:
    """Serve it from now on, by one rename, and sweep others; call it under the folder's lock.

    Args:
        folder: The model folder.
        pointer: What is served beside which release.
        anew: Whether its kernels were written anew. Whoever could not read those before looks
            again only when the note has changed, so it is written although it says the same.

    Returns:
        Whether it was not served before.

    Raises:
        StorageError: See :func:`fleet.files.atomic_path`.
    """
    new = anew or personal_of(folder) != pointer
    if new:
        # Without what is at its default: earlier versions read a core's note as well.
        late = {"core", "statistics"}
        note = pointer.model_dump(mode="json", exclude=late)
        note |= pointer.model_dump(mode="json", include=late, exclude_defaults=True)
        write_json(folder.path / PERSONAL, note)
    with suppress(OSError):  # what stays is swept the next time
        _sweep(folder, pointer.own.name)
    return new


def present(folder: ModelFolder) -> bool:
    """Tell whether anything lies there that :func:`withdraw` would delete."""
    return (folder.path / PERSONAL).exists() or bool(_kernels(folder))


def withdraw(folder: ModelFolder) -> bool:
    """Serve the release alone from now on, and delete the kernels; under the folder's lock.

    Returns:
        Whether anything was there.

    Raises:
        StorageError: ``personal-not-deleted``.
    """
    try:
        # First the note: nobody reads kernels that none names.
        note = folder.path / PERSONAL
        there = note.exists()
        if there:
            note.unlink(missing_ok=True)
            # A power cut must not bring back what somebody was told is gone.
            sync_directory(folder.path)
        swept = _sweep(folder, "")
        if swept:
            sync_directory(folder.own)
        return there or bool(swept)
    except OSError as error:
        raise StorageError(
            "personal-not-deleted",
            f"{error.filename} could not be deleted: {error.strerror}",
            "Make the folder writable and try again, or delete it by hand.",
        ) from error


def _sweep(folder: ModelFolder, spared: str) -> list[Path]:
    """Remove kernels that the note does not name."""
    old = [path for path in _kernels(folder) if path.stem != spared]
    for path in old:
        path.unlink(missing_ok=True)
    return old


def _kernels(folder: ModelFolder) -> list[Path]:
    # Also what a write that was cut off has left: it is of the same people.
    return [*folder.own.glob("*.safetensors"), *folder.own.glob(".*.tmp")]
