"""Who did what, when, to what: to read and to verify; rows are made by the changes themselves."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from fleet.errors import InputError, StorageError
from server.registry import chain, tables
from server.registry.ledger import Ledger
from server.registry.records import AuditRow

__all__ = ["LARGEST_PAGE", "Audit", "Head"]

LARGEST_PAGE = 1000
"""Rows of one answer; older ones are asked for by ``before``."""


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
            subject: Only rows about this device, round or release.
            before: Only rows before this number.
            newest: How many, at most :data:`LARGEST_PAGE`.

        Raises:
            InputError: ``bad-page``.
        """
        if not 1 <= newest <= LARGEST_PAGE:
            raise InputError("bad-page", f"a page has 1 to {LARGEST_PAGE} rows, not {newest}")
        kept = tables.audit
        query = select(kept).order_by(kept.c.seq.desc()).limit(newest)
        if subject is not None:
            query = query.where(kept.c.subject == subject)
        if before is not None:
            query = query.where(kept.c.seq < before)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
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
