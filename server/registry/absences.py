"""Who was not asked in a round, and why; kept together with the round's opening."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, delete, insert, select

from server.registry import standing_tables as tables
from server.registry.records import Record, RoundRow
from server.registry.rows import cleaned

__all__ = ["KEPT_ROUNDS", "Absence", "absences_of", "keep_absences"]

KEPT_ROUNDS = 1000
"""Rounds of which the absent stay; of a large fleet they are many more than a round asks."""


class Absence(Record):
    """Why a device was not asked.

    Args:
        reason: A stable code, see ``server.standing.eligibility``.
        detail: More, for people.
    """

    reason: str
    detail: str = ""


def keep_absences(connection: Connection, row: RoundRow, absent: Mapping[str, Absence]) -> None:
    """Keep who is not asked in a round; part of the transaction that opens it."""
    kept = tables.absences
    connection.execute(delete(kept).where(kept.c.round <= row.round - KEPT_ROUNDS))
    one = {"round": row.round, "attempt": row.attempt}
    rows = [
        {**one, "device": device, "reason": each.reason, "detail": cleaned(each.detail)}
        for device, each in sorted(absent.items())
    ]
    if rows:
        connection.execute(insert(kept), rows)


def absences_of(connection: Connection, row: RoundRow) -> dict[str, Absence]:
    """Return who was not asked in a round, by device."""
    kept = tables.absences
    which = (kept.c.round == row.round) & (kept.c.attempt == row.attempt)
    rows = connection.execute(select(kept).where(which)).all()
    found = {each.device: Absence(reason=each.reason, detail=each.detail) for each in rows}
    return dict(sorted(found.items()))
