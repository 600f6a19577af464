"""Start-up: whatever happened before, end with something whole served, and say what was done."""

from __future__ import annotations

from clients.agent.serving.folder import CURRENT, LAST_GOOD, ModelFolder
from clients.agent.serving.kept import KeptRelease, load_kept
from clients.agent.serving.records import Pointer, Recovery
from clients.agent.serving.serve import Serving
from clients.agent.serving.whole import Whole, open_served, whole_base
from fleet.errors import FleetError

__all__ = ["START_TRIES", "recover"]

START_TRIES = 3


def recover(serving: Serving, *, start_tries: int = START_TRIES) -> Recovery:
    """Clear what was cut off, verify what is served, and go back as far as it takes.

    In this order: ``current``; ``last-good``; either of them merged again from the base and its
    kept release; the base. A model under which ``start_tries`` start-ups in a row ended before
    this function did (killed for memory, say) is passed over too.

    Raises:
        StorageError: ``no-model``, ``model-busy``, or why the base itself cannot be read when
            nothing else can be served.
    """
    folder = serving.folder
    with serving.locked():
        problems: list[str] = []
        cleared = _cleared(folder, problems)
        recovery = _recovered(serving, start_tries, problems, cleared)
        try:
            folder.start_ended()
        except OSError as error:
            problems.append(f"the note of this start-up stays: {error.strerror}")
        return recovery.model_copy(update={"problems": tuple(problems)})


def _recovered(
    serving: Serving, start_tries: int, problems: list[str], cleared: tuple[str, ...]
) -> Recovery:
    folder = serving.folder
    current = _pointer(folder, CURRENT, problems)
    last_good = _pointer(folder, LAST_GOOD, problems)
    if current is not None and _died(folder, current, start_tries, problems):
        if last_good is not None and last_good.name == current.name:
            last_good = None
        current = None
    for which, pointer in ((CURRENT, current), (LAST_GOOD, last_good)):
        if pointer is None or not _based(serving, pointer, problems):
            continue
        if _whole(folder, pointer, which, problems) is not None:
            if which == CURRENT:
                return Recovery(source="current", served=pointer, cleared=cleared)
            _point(folder, pointer, problems)
            return Recovery(source="last-good", served=pointer, cleared=cleared)
    for pointer in (current, last_good):
        if pointer is not None and _merged_again(serving, pointer, problems) is not None:
            _point(folder, pointer, problems)
            return Recovery(source="merged-again", served=pointer, cleared=cleared)
    return _base(serving, problems, cleared)


def _base(serving: Serving, problems: list[str], cleared: tuple[str, ...]) -> Recovery:
    base = serving.held.bases.first
    try:
        whole = serving.held.merged(KeptRelease.bare(base))
    except FleetError as error:
        problems.append(f"the base could not be written for serving: {error.message}")
        return Recovery(source="memory", served=whole_base(base).pointer, cleared=cleared)
    swapped = _point(serving.folder, whole.pointer, problems)
    return Recovery(source="base" if swapped else "memory", served=whole.pointer, cleared=cleared)


def _based(serving: Serving, pointer: Pointer, problems: list[str]) -> bool:
    """Tell whether the base is there of which a pointer is; without it nothing could be trained.

    The server sends it along when it has the device serve that release again.
    """
    try:
        if pointer.base:
            serving.held.bases.opened(pointer.base)
    except FleetError as error:
        problems.append(f"release {pointer.number}: {error.message}")
        return False
    return True


def _merged_again(serving: Serving, pointer: Pointer, problems: list[str]) -> Whole | None:
    """Merge what a pointer names from the base and its kept release; None when it is not that."""
    try:
        kept = load_kept(serving.folder.release_file(pointer.name))
        whole = serving.held.merged(kept)
    except FleetError as error:
        problems.append(f"release {pointer.number} cannot be merged again: {error.message}")
        return None
    if whole.pointer.digest != pointer.digest:
        problems.append(
            f"release {pointer.number} merges to {whole.pointer.digest[:12]}… now, "
            f"{pointer.digest[:12]}… was served"
        )
        return None
    return whole


def _whole(folder: ModelFolder, pointer: Pointer, which: str, problems: list[str]) -> Whole | None:
    try:
        return open_served(folder.served_file(pointer.name), pointer)
    except FleetError as error:
        problems.append(f"{which}: {error.message}")
        return None


def _pointer(folder: ModelFolder, which: str, problems: list[str]) -> Pointer | None:
    try:
        return folder.pointer(which)
    except FleetError as error:
        problems.append(error.message)
        return None


def _died(folder: ModelFolder, current: Pointer, start_tries: int, problems: list[str]) -> bool:
    try:
        begun = folder.starts_begun(current.name)
    except FleetError as error:
        problems.append(f"this start-up could not be noted: {error.message}")
        return False
    if begun <= start_tries:
        return False
    problems.append(f"{begun - 1} start-ups in a row ended while they loaded {current.name}")
    return True


def _point(folder: ModelFolder, pointer: Pointer, problems: list[str]) -> bool:
    try:
        folder.point(CURRENT, pointer)
    except FleetError as error:
        problems.append(f"{CURRENT} could not be swapped: {error.message}")
    return folder.readable_pointer(CURRENT) == pointer


def _cleared(folder: ModelFolder, problems: list[str]) -> tuple[str, ...]:
    try:
        return tuple(folder.sweep())
    except OSError as error:
        problems.append(f"leftovers stay in {folder.path}: {error.strerror}")
        return ()
