"""Who did what, when, to what: to read and to verify; rows are made by the changes themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sqlalchemy import Row, Select, select

from fleet.errors import InputError, StorageError
from server.registry import chain, tables
from server.registry.ledger import Ledger
from server.registry.records import AuditRow

__all__ = ["LARGEST_PAGE", "Audit", "Head"]

LARGEST_PAGE = 1000
"""Rows of one answer; older ones are asked for by ``before``."""
ROWS_AT_ONCE = 500
_NAMING = ("devices", "absent")
_OF_ROUNDS = ("round.%", "update.%")


@dataclass(frozen=True)
class Head:
    """The end of the audit; written down elsewhere, it shows later that none was cut off.

    Args:
        seq: Number of the last row; 0 before the first.
        hash: Its hash.
    """

    seq: int
    hash: str


class Audit:
    """Reads the audit.

    Args:
        ledger: Where it is kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._database = ledger.database

    def rows(
        self, *, subject: str | None = None, before: int | None = None, newest: int = LARGEST_PAGE
    ) -> tuple[AuditRow, ...]:
        """Return the newest rows, in the order in which they came.

        Args:
            subject: Only rows about this device, round or release. One change of many devices is
                about each of them; what a round asked of whom is about the round.
            before: Only rows before this number.
            newest: How many, at most :data:`LARGEST_PAGE`.

        Raises:
            InputError: ``bad-page``.
        """
        if not 1 <= newest <= LARGEST_PAGE:
            raise InputError("bad-page", f"a page has 1 to {LARGEST_PAGE} rows, not {newest}")
        kept = tables.audit
        query = select(kept).order_by(kept.c.seq.desc())
        if before is not None:
            query = query.where(kept.c.seq < before)
        query = query.limit(newest) if subject is None else _about(query, subject)
        with self._database.read() as connection:
            found: Iterator[Row[Any]] = iter(connection.execute(query).yield_per(ROWS_AT_ONCE))
            if subject is not None:
                found = (row for row in found if _concerns(row, subject))
            rows = list(islice(found, newest))
        return tuple(chain.row_of(row) for row in reversed(rows))

    def head(self) -> Head:
        """Return the end of the chain."""
        with self._database.read() as connection:
            return Head(*chain.head(connection))

    def verify(self, expected: Head | None = None) -> Head:
        """Follow the whole chain; return its end.

        Args:
            expected: An earlier end; the chain must still go through it.

        Raises:
            StorageError: ``audit-broken``, naming the first row that does not fit.
        """
        with self._database.read() as connection:
            broken = chain.first_broken(connection)
            last = Head(*chain.head(connection))
            if broken is None and expected is not None and expected.seq:
                kept = tables.audit.c
                found = connection.execute(
                    select(kept.hash).where(kept.seq == expected.seq)
                ).scalar()
                if found is None:
                    broken = last.seq + 1, f"is missing; row {expected.seq} was there before"
                elif found != expected.hash:
                    broken = expected.seq, "is another one than was written down"
        if broken is not None:
            raise StorageError(
                "audit-broken",
                f"the audit of {self._database.where} is broken: row {broken[0]} {broken[1]}",
                "Compare with the last backup; what comes after that row proves nothing.",
            )
        return last


def _about(query: Select[Any], subject: str) -> Select[Any]:
    """Leave out what cannot be about a subject; a name in the text may still be something else."""
    kept = tables.audit.c
    named = kept.detail.contains(json.dumps(subject), autoescape=True)
    for verbs in _OF_ROUNDS:
        named &= kept.verb.not_like(verbs)
    return query.where((kept.subject == subject) | named)


def _concerns(row: Row[Any], subject: str) -> bool:
    if row.subject == subject:
        return True
    detail = json.loads(row.detail)
    return any(
        isinstance(names := detail.get(what), list | dict) and subject in names for what in _NAMING
    )
