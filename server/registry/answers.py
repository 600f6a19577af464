"""What devices answered in a round: updates and refusals, each kept at most once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, func, insert, select

from fleet.errors import InputError, MismatchError
from fleet.federate.admission import Admitted, Reason
from fleet.federate.wire import Payload
from server.registry import tables
from server.registry.packing import packed_update, unpacked_update
from server.registry.records import RefusalRow, RoundRow, UpdateRow
from server.registry.rows import cleaned

__all__ = [
    "LARGEST_STRAY_REFUSALS",
    "check_eligible",
    "keep_refusal",
    "keep_update",
    "refusals_of",
    "updates_of",
]

LARGEST_STRAY_REFUSALS = 1000
"""Refusals of one round beyond one for each device of its cohort; more are dropped."""


def keep_update(
    connection: Connection, row: RoundRow, admitted: Admitted, payload: Payload, at_s: float
) -> bool:
    """Keep an update of an open round; part of the caller's transaction.

    Returns:
        False when the device's update is there already: then nothing changes, whatever this one is.

    Raises:
        MismatchError: ``wrong-plan`` for an update to another plan.
        InputError: ``not-selected`` or ``not-eligible`` for a device that has no part in the round.
    """
    device = admitted.header.device
    if admitted.header.plan != row.plan.id:
        raise MismatchError(
            "wrong-plan",
            f"round {row.round} has the plan {row.plan.id}, the update answers "
            f"{admitted.header.plan[:16]}",
        )
    if not connection.execute(select(_of(tables.cohort, row, device))).scalar_one():
        raise InputError("not-selected", f"{device} is not in the cohort of round {row.round}")
    check_eligible(connection, [device])
    if connection.execute(select(_of(tables.updates, row, device))).scalar_one():
        return False
    header, content = packed_update(payload)
    values = {
        "round": row.round,
        "attempt": row.attempt,
        "device": device,
        "digest": admitted.digest,
        "weight": admitted.weight,
        "norm": admitted.norm,
        "arrived_at_s": at_s,
        "header": header,
        "payload": content,
    }
    connection.execute(insert(tables.updates).values(**values))
    return True


def keep_refusal(connection: Connection, row: RoundRow, refusal: RefusalRow) -> bool:
    """Keep why a device has no update in an open round; part of the caller's transaction.

    Returns:
        False when that was kept already, or the round has too many.
    """
    table = tables.refusals
    why = (table.c.reason == refusal.reason.value) & (table.c.earlier == refusal.earlier)
    same = _of(table, row, cleaned(refusal.device), why)
    if connection.execute(select(same)).scalar_one():
        return False
    asked, refused = _count(connection, tables.cohort, row), _count(connection, table, row)
    if refused >= asked + LARGEST_STRAY_REFUSALS:
        return False
    values = {
        "round": row.round,
        "attempt": row.attempt,
        "device": cleaned(refusal.device),
        "reason": refusal.reason.value,
        "detail": cleaned(refusal.detail),
        "earlier": refusal.earlier,
        "at_s": refusal.at_s,
    }
    connection.execute(insert(table).values(**values))
    return True


def check_eligible(connection: Connection, devices: list[str]) -> None:
    """Refuse devices that may not take part.

    Raises:
        InputError: ``not-eligible``, naming the first ones and why.
    """
    kept = tables.devices.c
    found = select(kept.name, kept.state).where(kept.name.in_(devices))
    states = {row.name: row.state for row in connection.execute(found)}
    wrong = [
        f"{device} is {states.get(device, 'not enrolled')}"
        for device in devices
        if states.get(device) != "enrolled"
    ]
    if wrong:
        raise InputError(
            "not-eligible",
            f"only enrolled devices take part in a round: {', '.join(wrong[:5])}",
            "See why: fleet device why NAME",
        )


def updates_of(connection: Connection, row: RoundRow) -> tuple[UpdateRow, ...]:
    """Return a round's updates, by device.

    Raises:
        StorageError: ``update-damaged``.
    """
    kept = tables.updates.c
    query = select(tables.updates).where(kept.round == row.round, kept.attempt == row.attempt)
    found = [_update(each) for each in connection.execute(query)]
    return tuple(sorted(found, key=lambda update: update.device))


def _update(row: Any) -> UpdateRow:
    payload = unpacked_update(row.header, bytes(row.payload))
    return UpdateRow(row.device, payload, row.digest, row.weight, row.norm, row.arrived_at_s)


def refusals_of(connection: Connection, row: RoundRow) -> tuple[RefusalRow, ...]:
    """Return a round's refusals, in the order in which they came."""
    kept = tables.refusals.c
    query = select(tables.refusals).where(kept.round == row.round, kept.attempt == row.attempt)
    return tuple(
        RefusalRow(
            device=each.device,
            reason=Reason(each.reason),
            detail=each.detail,
            at_s=each.at_s,
            earlier=each.earlier,
        )
        for each in connection.execute(query.order_by(kept.id))
    )


def _of(
    table: Table, row: RoundRow, device: str, *more: ColumnElement[bool]
) -> ColumnElement[bool]:
    """Return the question whether a round has a row of a device."""
    kept = table.c
    of_round = (kept.round == row.round) & (kept.attempt == row.attempt)
    return select(kept.round).where(of_round, kept.device == device, *more).exists()


def _count(connection: Connection, table: Table, row: RoundRow) -> int:
    of_round = (table.c.round == row.round) & (table.c.attempt == row.attempt)
    query = select(func.count()).select_from(table).where(of_round)
    return int(connection.execute(query).scalar_one())
