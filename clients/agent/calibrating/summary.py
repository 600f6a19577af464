"""What people and the operator's health query are told of a device's own statistics; no torch."""

from __future__ import annotations

from typing import Any

from clients.agent.calibrating.kept import judged_of, kept_of
from clients.agent.serving.folder import ModelFolder
from clients.agent.serving.personal import personal_of
from clients.agent.store import Store
from fleet.errors import FleetError

__all__ = ["flat", "line", "standing"]


def standing(store: Store, folder: ModelFolder, on: bool) -> dict[str, Any]:
    """Return what there is of own statistics, and what is served of them.

    Args:
        store: The device's store.
        folder: Its model folder.
        on: Whether the owner wants them.

    Returns:
        ``on``, ``served`` (the digest of the kernels that they are in, or None), ``kept`` (None
        without any), ``judged`` (what the windows kept back said of the release under the fleet's
        statistics and under these; None before) and ``problem``.
    """
    pointer = personal_of(folder)
    served = pointer.own.digest if pointer and pointer.statistics else None
    found: dict[str, Any] = {
        "on": on,
        "served": served,
        "kept": None,
        "judged": None,
        "problem": None,
    }
    try:
        kept = kept_of(store)
    except FleetError as error:
        return found | {"problem": error.message}
    if kept is None:
        return found
    said = judged_of(store)
    found["kept"] = {
        "digest": kept.digest,
        "base": kept.base,
        "windows": kept.windows,
        "people": len(kept.people),
        "made_s": kept.made_s,
        "bytes": sum(array.nbytes for array in kept.arrays.values()),
    }
    if said.get("statistics") == kept.digest:
        found["judged"] = said
    return found


def flat(store: Store, folder: ModelFolder, now_s: float) -> dict[str, bool | int]:
    """Return the same for a health answer: nothing without any."""
    found = standing(store, folder, True)
    kept = found["kept"]
    if kept is None:
        return {}
    return {
        "statistics-windows": kept["windows"],
        "statistics-served": found["served"] is not None,
        "statistics-age-s": int(max(0.0, now_s - kept["made_s"])),
    }


def line(found: dict[str, Any]) -> str:
    """Return one line of it for people."""
    word = "on" if found["on"] else "off"
    if found["problem"]:
        return f"{word}; {found['problem']}"
    if found["kept"] is None:
        return f"{word}; none taken yet" if found["on"] else word
    served, said = "served" if found["served"] else "not served", found["judged"]
    text = f"{word}; {served}, of {found['kept']['windows']} windows"
    if said is None:
        return f"{text}, not judged by themselves"
    if not said.get("windows"):
        return f"{text}, not judged: no windows with labels are kept back"
    return (
        f"{text}: on {said['windows']} windows kept back loss "
        f"{said['loss-before']:.3f} → {said['loss-after']:.3f}, macro-F1 "
        f"{said['f1-before']:.3f} → {said['f1-after']:.3f}"
    )
