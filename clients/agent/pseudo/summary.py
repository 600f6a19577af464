"""What people and the operator's health query are told of pseudo-labels; no torch is needed."""

from __future__ import annotations

from typing import Any

from clients.agent.pseudo.kept import kept_of
from clients.agent.serving.folder import ModelFolder
from clients.agent.store import Store
from fleet.errors import FleetError

__all__ = ["flat", "line", "standing"]

REASONS = {
    "no-held-out": "no labelled windows are held out",
    "no-unlabelled": "there were no windows without a label",
    "few-held-out": "too few held-out windows that it is sure of",
    "not-precise": "not right often enough",
    "none-confident": "sure of none",
    "over-budget": "the day leaves too few seconds to look for any",
}


def standing(store: Store, folder: ModelFolder, on: bool) -> dict[str, Any]:
    """Return what the last training took.

    Args:
        store: The device's store.
        folder: Its model folder; nothing of them is served.
        on: Whether the owner wants them.

    Returns:
        ``on``, ``last`` (None before one, and after anybody was forgotten; else what the journal
        has of it) and ``problem``.
    """
    found: dict[str, Any] = {"on": on, "last": None, "problem": None}
    try:
        kept = kept_of(store)
    except FleetError as error:
        return found | {"problem": error.message}
    return found if kept is None else found | {"last": {"plan": kept.plan, **kept.said}}


def flat(store: Store, folder: ModelFolder, on: bool) -> dict[str, str | int]:
    """Return the same for a health answer: nothing while they are off."""
    last = standing(store, folder, on)["last"] if on else None
    if last is None:
        return {}
    told = {"pseudo-labels": last["used"]}
    return told | ({"pseudo-labels-none": last["none"]} if "none" in last else {})


def line(found: dict[str, Any]) -> str:
    """Return one line of it for people."""
    if not found["on"]:
        return "off"
    if found["problem"]:
        return f"on; {found['problem']}"
    last = found["last"]
    if last is None:
        return "on; no training yet"
    sure = f"right on {last['right']} of {last['confident']} held-out windows that it is sure of"
    when = "in the last training with them"
    if "none" in last:
        return f"on; none {when}: {REASONS.get(last['none'], last['none'])} ({sure})"
    return f"on; {last['used']} of {last['looked-at']} windows {when} ({sure})"
