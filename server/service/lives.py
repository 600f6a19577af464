"""What the standing service says of itself, for ``fleet server status``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet.errors import FleetError
from fleet.supervise.record import standing as supervised
from server.control.reach import registry_place
from server.control.verbs.life import UP, life_of
from server.control.verbs.ordered import last_order
from server.registry import open_registry
from server.service.folder import ServerFolder
from server.service.keeper import read_standing
from server.service.keeping import SILENT_S
from server.standing.policy import ON_ORDER

__all__ = ["standing_line_of", "standing_of"]


def standing_of(folder: ServerFolder) -> dict[str, Any]:
    """Return the standing service as JSON holds it.

    Returns:
        ``run`` (Flower's id or ``None``), ``lives``, ``silent_s`` since it last said so or
        ``None``, ``pid``, ``doing``, the newest ``order`` for a round or ``None``, ``problem``
        where the registry cannot be read, whether it ``ended`` with its server, and what brings it
        back as ``next``, empty while it is there.
    """
    run = read_standing(folder)
    data: dict[str, Any] = {"run": run.run if run else None, "lives": False, "silent_s": None}
    data |= {"pid": None, "doing": {}, "order": None, "problem": "", "ended": False}
    up = supervised(folder.path)
    data["next"] = life_of(None, up, time.time()).next
    place = registry_place(folder)
    if isinstance(place, Path) and not place.exists():
        return data
    try:
        with open_registry(place, clock=time.time) as registry:
            beat = registry.observations.heartbeat()
            data["order"] = last_order(registry)
    except FleetError as error:
        return {**data, "problem": error.message}
    if beat is None:
        return data
    now = time.time()
    silent_s, life = round(max(0.0, now - beat.alive_at_s), 1), life_of(beat, up, now)
    known = run is not None and beat.started_at_s >= run.started_at_s
    data |= {"silent_s": silent_s, "lives": known and silent_s <= SILENT_S and not life.ended}
    data |= {"ended": life.ended, "next": life.next}
    return data | {"pid": beat.pid, "doing": dict(beat.doing)}


def standing_line_of(data: Mapping[str, Any] | None) -> str:
    """Return what :func:`standing_of` knows as one line for people."""
    if data is None:
        return "none; to have one: fleet server init --standing, then fleet server up"
    if data["problem"]:
        return f"unknown: {data['problem']}"
    if data["silent_s"] is None or data["run"] is None:
        return "has not begun yet"
    doing = ", ".join(_words(data["doing"], data["order"], stopped=data["next"] == UP))
    gone = "has ended" if data["ended"] else "is silent"
    head = f"run {data['run']}" if data["lives"] else f"run {data['run']} {gone}"
    return f"{head}; last heard of {data['silent_s']:.0f} s ago" + (f"; {doing}" if doing else "")


def _words(
    doing: Mapping[str, Any], order: Mapping[str, Any] | None, *, stopped: bool
) -> list[str]:
    """Return what the service does, why it idles, and the next step unless it has to be started."""
    plain = {key: value for key, value in doing.items() if key not in ("why", "next")}
    words = [f"{key} {value}" for key, value in plain.items()]
    words += [str(doing["why"])] if "why" in doing else []
    # What it waits for now says the same as the order that failed of it.
    if order is not None and order["stands"] and "waiting" not in doing:
        words.append(f"last order failed: {order['error']}")
    elif doing.get("why") == ON_ORDER and not stopped:
        words.append("next: fleet round start")
    return words + ([f"next: {doing['next']}"] if "next" in doing and not stopped else [])
