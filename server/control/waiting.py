"""Waits for what scripts wait for, with a limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fleet.errors import FleetError, RoundError
from server.control import requests as r
from server.control.errors import LateError
from server.control.seam import Event, Verbs

__all__ = ["closed_round", "watched"]

CLOSING = ("round.release", "round.abandon")
FINISHED = "order.finish"


def closed_round(verbs: Verbs, number: int | None, limit_s: float) -> dict[str, Any]:
    """Wait until a round is closed.

    Args:
        verbs: Whom to ask.
        number: Which; None for the next that is closed from now on.
        limit_s: Seconds.

    Returns:
        The round as ``RoundShow`` tells it.

    Raises:
        RoundError: ``round-abandoned``, or ``order-failed`` when the newest order for a round
            failed and none was closed since, so there is nothing to wait for.
        LateError: ``wait-timeout``; the round may still be released later.
    """
    rows = verbs.ask(r.AuditList(newest=1)).data["rows"]
    after = rows[-1]["seq"] if rows else 0
    if number is not None and (there := _round(verbs, number)) and there["state"] != "open":
        return _released(there)
    _check_order(verbs)
    for event in verbs.watch(after, limit_s):
        if event.verb == FINISHED and event.detail.get("error"):
            _check_order(verbs)
        if event.verb in CLOSING and number in (None, event.detail.get("round")):
            found = _round(verbs, int(event.detail["round"]))
            if found is not None and found["state"] != "open":
                return _released(found)
    which = "no round" if number is None else f"round {number}"
    verb = "was closed" if number is None else "was not closed"
    raise LateError("wait-timeout", f"{which} {verb} within {limit_s:g} s", "See: fleet round show")


def watched(verbs: Verbs, after: int | None, limit_s: float) -> Iterator[Event]:
    """Yield what happens; without end for a limit of 0, though a server ends every watch."""
    while True:
        for event in verbs.watch(after, limit_s):
            after = event.seq
            yield event
        if limit_s:
            return


def _check_order(verbs: Verbs) -> None:
    order = verbs.ask(r.RoundList(newest=1)).data["order"]
    if order is not None and order["stands"]:
        raise RoundError(
            "order-failed",
            f"no round was opened, since order {order['id']} failed: {order['error']}",
            "Mend it, then order one again: fleet round start; see also: fleet server status",
        )


def _round(verbs: Verbs, number: int) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = verbs.ask(r.RoundShow(round=number)).data["round"]
    except FleetError as error:
        if error.code == "no-such-round":
            return None
        raise
    return found


def _released(found: dict[str, Any]) -> dict[str, Any]:
    if found["state"] == "abandoned":
        raise RoundError(
            "round-abandoned",
            f"round {found['round']} was abandoned: {found['closed']['why'] or 'no reason given'}",
            f"See: fleet round show {found['round']}",
        )
    return found
