"""Waits for what scripts wait for, with a limit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fleet.errors import FleetError, RoundError
from server.control import requests as r
from server.control.errors import LateError
from server.control.seam import Event, Verbs

__all__ = ["closed_round", "finished_order", "last_row", "watched"]

CLOSING = ("round.release", "round.abandon")
FINISHED = "order.finish"


UNFINISHED = ("waiting", "taken")
# Only the newest can be open, so whether one was closed since is among them.
NEWEST = 2


def closed_round(
    verbs: Verbs, number: int | None, limit_s: float, *, after: int | None = None
) -> dict[str, Any]:
    """Wait until a round is closed.

    Args:
        verbs: Whom to ask.
        number: Which; None for the one that was ordered last, closed already or not. When nobody
            ordered one, or others were opened since that one closed, the next that is closed from
            now on.
        limit_s: Seconds.
        after: Instead of a number: the round that follows this one, closed already or not.

    Returns:
        The round as ``RoundShow`` tells it.

    Raises:
        RoundError: ``round-abandoned``, or ``order-failed`` when the newest order for a round
            failed and none was closed since, so there is nothing to wait for.
        LateError: ``wait-timeout``; the round may still be released later.
    """
    if after is not None:
        number = after + 1  # rounds have consecutive numbers
    seen = last_row(verbs)
    # What closes from here on is in the audit after that row, so nothing falls in between.
    if (there := _there(verbs, number)) is not None:
        return _released(there)
    _check_order(verbs)
    for event in verbs.watch(seen, limit_s):
        if event.verb == FINISHED and event.detail.get("error"):
            _check_order(verbs)
        if event.verb in CLOSING and number in (None, int(event.detail["round"])):
            found = _round(verbs, int(event.detail["round"]))
            if found is not None and found["state"] != "open":
                return _released(found)
    which = "no round" if number is None else f"round {number}"
    verb = "was closed" if number is None else "was not closed"
    raise LateError("wait-timeout", f"{which} {verb} within {limit_s:g} s", "See: fleet round show")


def last_row(verbs: Verbs) -> int:
    """Return the number of the audit's last row, to watch from before something is asked."""
    rows = verbs.ask(r.AuditList(newest=1)).data["rows"]
    return int(rows[-1]["seq"]) if rows else 0


def finished_order(verbs: Verbs, order: int, after: int, limit_s: float) -> dict[str, Any]:
    """Wait until the service has finished an order; return what came of it.

    Args:
        verbs: Whom to ask.
        order: Its number.
        after: Row of the audit from before it was placed.
        limit_s: Seconds.

    Raises:
        RoundError: ``order-failed``.
        LateError: ``wait-timeout``; it may still be done later.
    """
    for event in verbs.watch(after, limit_s):
        if event.verb != FINISHED or event.detail.get("order") != order:
            continue
        if why := event.detail.get("error"):
            raise RoundError("order-failed", f"order {order} failed: {why}", "Mend it, then again.")
        return dict(event.detail["result"])
    raise LateError(
        "wait-timeout",
        f"order {order} was not finished within {limit_s:g} s; it stands",
        "See: fleet server status, fleet release list",
    )


def _there(verbs: Verbs, number: int | None) -> dict[str, Any] | None:
    """Return the round that is waited for where it is closed already."""
    told = verbs.ask(r.RoundList(newest=NEWEST)).data
    order = told["order"]
    if number is None:
        number = _of_order(told["rounds"], order)
    found = None if number is None else _round(verbs, number)
    if found is None or found["state"] == "open":
        return None
    # What was ordered after a round was abandoned is its next attempt, or why there is none.
    ordered = order is not None and (order["state"] in UNFINISHED or order["stands"])
    return None if ordered and found["state"] == "abandoned" else found


def _of_order(rows: list[dict[str, Any]], order: dict[str, Any] | None) -> int | None:
    """Return the number that the newest order led to, unless later rounds were closed since."""
    if order is None or order["round"] is None:
        return None
    number = int(order["round"])
    overtaken = any(row["round"] > number and row["state"] != "open" for row in rows)
    return None if overtaken else number


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
