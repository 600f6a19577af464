"""The audit's chain: each row carries the hash of the one before, so no row changes unnoticed.

    hash = SHA-256(canonical JSON of [format, previous, seq, at_s, actor, verb, subject, detail])

A trigger forbids UPDATE and DELETE; the chain finds what went round the trigger. Rows cut off at
the end leave a whole, shorter chain: only a head that was written down elsewhere shows that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from fleet.adapt.digest import canonical_json, digest_json
from server.registry import tables
from server.registry.records import AuditRow

__all__ = ["NOTHING", "append", "first_broken", "hash_of", "head", "row_of"]

FORMAT = "corefleet.audit.1"
NOTHING = "0" * 64
"""What the first row follows."""
ROWS_AT_ONCE = 500


def append(
    connection: Connection,
    at_s: float,
    actor: str,
    verb: str,
    subject: str,
    detail: Mapping[str, Any],
) -> None:
    """Add a row at the end; part of the caller's transaction, who writes alone."""
    last, previous = head(connection)
    row: dict[str, Any] = {
        "seq": last + 1,
        "at_s": float(at_s),
        "actor": actor,
        "verb": verb,
        "subject": subject,
        "detail": canonical_json(dict(detail)).decode(),
        "previous": previous,
    }
    connection.execute(insert(tables.audit).values({**row, "hash": hash_of(**row)}))


def head(connection: Connection) -> tuple[int, str]:
    """Return number and hash of the last row; 0 and :data:`NOTHING` before the first."""
    audit = tables.audit.c
    query = select(audit.seq, audit.hash).order_by(audit.seq.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    return (int(row.seq), str(row.hash)) if row else (0, NOTHING)


def hash_of(
    seq: int, at_s: float, actor: str, verb: str, subject: str, detail: str, previous: str
) -> str:
    """Return a row's hash; ``detail`` is the text that is kept."""
    return digest_json([FORMAT, previous, seq, at_s, actor, verb, subject, detail])


def first_broken(connection: Connection) -> tuple[int, str] | None:
    """Follow the chain; return the first row that does not fit and why, None when all do."""
    expected, previous = 1, NOTHING
    query = select(tables.audit).order_by(tables.audit.c.seq)
    for row in connection.execute(query).yield_per(ROWS_AT_ONCE):
        if row.seq != expected:
            return expected, f"is missing; the next one is {row.seq}"
        if row.previous != previous:
            return expected, "does not follow the row before"
        kept = row._asdict()
        found = kept.pop("hash")
        if hash_of(**kept) != found:
            return expected, "was changed: its content has another hash"
        expected, previous = expected + 1, found
    return None


def row_of(row: Row[Any]) -> AuditRow:
    """Return a kept row as a record."""
    return AuditRow(**{**row._asdict(), "detail": json.loads(row.detail)})
