"""What people and the operator's health query are told of the private core."""

from __future__ import annotations

from typing import Any

from clients.agent.serving.folder import ModelFolder
from clients.agent.serving.personal import personal_of
from clients.agent.store import Store
from fleet.errors import FleetError

__all__ = ["flat", "line", "standing"]

FIGURES = ("windows", "loss-before", "loss-after", "f1-before", "f1-after")


def standing(store: Store, folder: ModelFolder, on: bool) -> dict[str, Any]:
    """Return what there is of the private core, and what is served of it.

    Args:
        store: The device's store.
        folder: Its model folder.
        on: Whether the owner wants one.

    Returns:
        ``on``, ``served`` (the digest of the kernels, or None) and ``core`` (None without one, or
        where an older store has no place for it): what it belongs to, and ``judged``, see
        ``clients.agent.private.learning.judged``.
    """
    pointer = personal_of(folder)
    found: dict[str, Any] = {
        "on": on,
        "served": pointer.own.digest if pointer and pointer.core else None,
        "core": None,
        "problem": None,
    }
    try:
        row = store.personal.get()
    except FleetError as error:
        return found | {"problem": error.message}
    if row is not None:
        found["core"] = {
            "digest": row.digest,
            "base": row.base,
            "frame": row.frame,
            "layout": row.layout,
            "method": row.method,
            "release": row.release,
            "made_s": row.made_s,
            "bytes": len(row.payload),
            "people": len(row.people),
            "helps": row.serves,
            "judged": dict(row.judged),
        }
    return found


def flat(store: Store, folder: ModelFolder) -> dict[str, bool | int | float]:
    """Return the same for a health answer: nothing without a core."""
    found = standing(store, folder, True)
    if found["core"] is None:
        return {}
    reading = found["core"]["judged"]
    told = {f"personal-{name}": reading[name] for name in FIGURES if name in reading}
    return {"personal-served": found["served"] is not None, **told}


def line(found: dict[str, Any]) -> str:
    """Return one line of it for people."""
    word = "on" if found["on"] else "off"
    if found["problem"]:
        return f"{word}; {found['problem']}"
    core = found["core"]
    if core is None:
        return f"{word}; none learned yet" if found["on"] else word
    served = "served" if found["served"] else "not served"
    reading = core["judged"]
    if not reading.get("windows"):
        return f"{word}; {served}, learned on release {core['release']}, not judged yet"
    return (
        f"{word}; {served}: on {reading['windows']} windows kept back loss "
        f"{reading['loss-before']:.3f} → {reading['loss-after']:.3f}, macro-F1 "
        f"{reading['f1-before']:.3f} → {reading['f1-after']:.3f}"
    )
