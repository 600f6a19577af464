"""Verbs about rounds. A round is opened and closed by the service, so these place orders."""

from __future__ import annotations

from typing import Any

from fleet.errors import InputError, RoundError
from server.control import requests as r
from server.control.seam import Answer
from server.control.verbs.counts import answers_of
from server.control.verbs.distance import distance
from server.control.verbs.fleet import Fleet
from server.control.verbs.life import life
from server.control.verbs.ordered import last_order, shown_order
from server.control.verbs.shown import shown_round, utc
from server.control.verbs.touched import touched
from server.registry.orders import Order, Verb
from server.registry.records import RoundRow
from server.registry.replay import recorded_rule
from server.registry.upcoming import next_round

__all__ = ["abort", "listed", "replay", "show", "start"]


def listed(fleet: Fleet, actor: str, asked: r.RoundList) -> Answer:
    """List the newest rounds, every attempt."""
    rows = fleet.registry.rounds.all(asked.newest)
    counts = answers_of(fleet.registry, rows)
    shown = [shown_round(row, *counts.get((row.round, row.attempt), (0, 0))) for row in rows]
    return Answer({"rounds": shown, "order": last_order(fleet.registry)})


def show(fleet: Fleet, actor: str, asked: r.RoundShow) -> Answer:
    """Show a round: its plan, its rule, and what each device of its cohort answered.

    Raises:
        InputError: ``no-such-round``.
    """
    row = _row(fleet, asked)
    updates = fleet.registry.rounds.updates(row.round, row.attempt)
    refusals = fleet.registry.rounds.refusals(row.round, row.attempt)
    own = [each for each in refusals if not each.earlier]
    accepted = [
        {
            "device": each.device,
            "weight": each.weight,
            "norm": round(each.norm, 6),
            "digest": each.digest,
            "arrived_at": utc(each.arrived_at_s),
        }
        for each in updates
    ]
    refused = [
        {
            "device": each.device,
            "reason": each.reason.value,
            "detail": each.detail,
            "earlier": each.earlier,
            "at": utc(each.at_s),
        }
        for each in refusals
    ]
    heard = {each.device for each in updates} | {each.device for each in own}
    shown = shown_round(row, len(updates), len(own)) | {
        "cohort": list(row.selected),
        "unanswered": [device for device in row.selected if device not in heard],
        "updates": accepted,
        "refusals": refused,
        "rule": dict(row.rule),
        "asks": row.plan.model_dump(mode="json"),
    }
    return Answer({"round": shown, "order": last_order(fleet.registry)})


def start(fleet: Fleet, actor: str, asked: r.RoundStart) -> Answer:
    """Order a round now; tells which number it has if no other one is opened before."""
    order = fleet.registry.orders.place(Verb.start_round, {}, actor=actor, key=asked.key)
    number = _ordered(fleet, order)
    found = life(fleet)
    data = {"order": shown_order(order), "round": number, "service_alive_at": _alive(fleet)}
    step = {"next": found.next or f"fleet round wait {number}"}
    return Answer({**data, **found.record(), **step})


def abort(fleet: Fleet, actor: str, asked: r.RoundAbort) -> Answer:
    """Order that the open round ends without a release.

    Raises:
        RoundError: ``no-open-round``.
    """
    found = fleet.registry.open_round()
    if found is None:
        raise RoundError(
            "no-open-round", "no round is open, so none can be aborted", "See: fleet round list"
        )
    reach = touched(found.row.selected, (), [found.row.round])
    data: dict[str, Any] = {"dry_run": asked.dry_run, "touches": reach, "round": found.row.round}
    if not asked.dry_run:
        orders = fleet.registry.orders
        why = asked.why or "aborted by an operator"
        order = orders.place(Verb.abort_round, {"reason": why}, actor=actor, key=asked.key)
        data |= {"order": shown_order(order), "service_alive_at": _alive(fleet)}
        data |= life(fleet).record()
    return Answer(data)


def replay(fleet: Fleet, actor: str, asked: r.RoundReplay) -> Answer:
    """Recompute a round's release from its stored updates; nothing is written.

    Raises:
        InputError: ``rule``'s own, ``no-such-round`` or ``no-such-update``.
        RoundError: ``no-release`` for a round that made none.
    """
    made = fleet.registry.replay(asked.round, without=asked.without, rule=asked.rule or None)
    row = fleet.registry.rounds.get(asked.round)
    start, recorded = (
        fleet.registry.releases.load(number) for number in (row.plan.release, made.release.number)
    )
    return Answer(
        {
            "round": asked.round,
            "same": made.same,
            "digest": made.release.digest,
            "recorded": made.recorded,
            "devices": list(made.devices),
            "without": sorted(asked.without),
            "rule": made.rule,
            "recorded_rule": recorded_rule(row).text,
            "distance": distance(start, recorded, made.release),
        }
    )


def _row(fleet: Fleet, asked: r.RoundShow) -> RoundRow:
    """Return the round that is asked for; where there is none, an order for it may have failed."""
    try:
        return (
            _last(fleet)
            if asked.round is None
            else fleet.registry.rounds.get(asked.round, asked.attempt)
        )
    except InputError as error:
        order = last_order(fleet.registry)
        if error.code != "no-such-round" or order is None or not order["stands"]:
            raise
        told = f"{error.message}; order {order['id']} for one failed: {order['error']}"
        raise InputError(error.code, told, "See: fleet server status") from error


def _last(fleet: Fleet) -> RoundRow:
    found = fleet.registry.rounds.all(1)
    if not found:
        raise InputError("no-such-round", "there was no round yet", "Order one: fleet round start")
    return found[-1]


def _ordered(fleet: Fleet, order: Order) -> int:
    """Return the number of the round of an order; of one that is not opened, the next number."""
    opened = fleet.registry.orders.get(order.id).result.get("round")
    return next_round(fleet.registry)[0] if opened is None else int(opened)


def _alive(fleet: Fleet) -> str | None:
    beat = fleet.registry.observations.heartbeat()
    return None if beat is None else utc(beat.alive_at_s)
