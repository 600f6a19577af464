"""Between rows and records: the same few conversions for every noun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select

from fleet.errors import InputError
from fleet.federate.records import Plan
from server.registry import tables
from server.registry.ledger import LARGEST_TEXT, parsed
from server.registry.records import Deed, Device, ReleaseRow, RoundRow

__all__ = [
    "checked_release",
    "cleaned",
    "deed",
    "devices_of",
    "done",
    "releases_of",
    "rounds_of",
]


def cleaned(text: str) -> str:
    """Return free text as every database can keep it, cut to :data:`LARGEST_TEXT` characters."""
    whole = text.encode("utf-8", "replace").decode()  # lone surrogates have no UTF-8
    return whole.replace("\0", "\ufffd")[:LARGEST_TEXT]  # PostgreSQL keeps no NUL


def done(what: str, at_s: float | None = None, by: str = "", why: str = "") -> dict[str, Any]:
    """Return the columns that say who did something; by default that nobody did."""
    return {f"{what}_at_s": at_s, f"{what}_by": by, f"{what}_why": cleaned(why)}


def deed(row: Row[Any], what: str) -> Deed | None:
    """Return who did something; None when nobody did."""
    at_s = getattr(row, f"{what}_at_s")
    if at_s is None:
        return None
    return Deed(at_s=at_s, by=getattr(row, f"{what}_by"), why=getattr(row, f"{what}_why"))


def devices_of(connection: Connection, *where: ColumnElement[bool]) -> tuple[Device, ...]:
    """Return the devices that the conditions choose, by name."""
    kept, keys, tags = tables.devices, tables.device_keys.c, tables.device_tags.c
    query = select(kept, keys.public_key).join(
        tables.device_keys, keys.fingerprint == kept.c.fingerprint
    )
    # Databases sort text each in its own way, so Python does it.
    rows = sorted(connection.execute(query.where(*where)).all(), key=lambda row: str(row.name))
    chosen = select(tags.device, tags.tag).join(kept, kept.c.name == tags.device).where(*where)
    tags_of: dict[str, list[str]] = {}
    for name, tag in connection.execute(chosen):
        tags_of.setdefault(name, []).append(tag)
    return tuple(_device(row, tuple(sorted(tags_of.get(row.name, ())))) for row in rows)


def _device(row: Row[Any], tags: tuple[str, ...]) -> Device:
    enrolled = deed(row, "enrolled")
    assert enrolled is not None
    return Device(
        name=row.name,
        state=row.state,
        public_key=row.public_key,
        fingerprint=row.fingerprint,
        tags=tags,
        enrolled=enrolled,
        quarantined=deed(row, "quarantined"),
        revoked=deed(row, "revoked"),
        seen_at_s=row.seen_at_s,
        status=parsed(row.status),
        serves=row.serves,
        serves_release=row.serves_release,
        pinned=row.pinned,
    )


def releases_of(connection: Connection, *where: ColumnElement[bool]) -> tuple[ReleaseRow, ...]:
    """Return the releases that the conditions choose, by number, without their states."""
    kept, moves = tables.releases, tables.promotions
    last = (
        select(moves.c.release, func.max(moves.c.id).label("id")).group_by(moves.c.release)
    ).subquery()
    columns = [column for column in kept.c if column.name != "state"]
    query = (
        select(*columns, moves.c.promoted_at_s, moves.c.promoted_by, moves.c.promoted_why)
        .outerjoin(last, last.c.release == kept.c.number)
        .outerjoin(moves, moves.c.id == last.c.id)
    )
    rows: Sequence[Any] = connection.execute(query.where(*where).order_by(kept.c.number)).all()
    return tuple(_release(row) for row in rows)


def _release(row: Row[Any]) -> ReleaseRow:
    created = deed(row, "created")
    assert created is not None
    return ReleaseRow(
        number=row.number,
        digest=row.digest,
        parent=row.parent,
        base=row.base,
        frame=row.frame,
        method=row.method,
        state_digest=row.state_digest,
        provenance=parsed(row.provenance),
        signature=(row.signature or b"").hex(),
        created=created,
        promoted=deed(row, "promoted"),
        withdrawn=deed(row, "withdrawn"),
    )


def checked_release(connection: Connection, number: int) -> ReleaseRow:
    """Return a release that devices may be moved to.

    Raises:
        InputError: ``no-such-release`` or ``release-withdrawn``.
    """
    found = releases_of(connection, tables.releases.c.number == number)
    if not found:
        raise InputError(
            "no-such-release", f"there is no release {number}", "See them: fleet release list"
        )
    if found[0].withdrawn is not None:
        raise InputError(
            "release-withdrawn",
            f"release {number} was withdrawn by {found[0].withdrawn.by}: {found[0].withdrawn.why}",
            "Choose another one: fleet release list",
        )
    return found[0]


def rounds_of(
    connection: Connection, *where: ColumnElement[bool], cohorts: bool = True
) -> tuple[RoundRow, ...]:
    """Return the rounds that the conditions choose, by round and attempt.

    Args:
        connection: Where.
        where: Conditions on the rounds.
        cohorts: Fill ``selected``; a cohort may be large.
    """
    kept, asked = tables.rounds, tables.cohort
    rows = connection.execute(
        select(kept).where(*where).order_by(kept.c.round, kept.c.attempt)
    ).all()
    same = (kept.c.round == asked.c.round) & (kept.c.attempt == asked.c.attempt)
    query = select(asked).join(kept, same).where(*where)
    selected: dict[tuple[int, int], list[str]] = {}
    for row in connection.execute(query) if cohorts else ():
        selected.setdefault((row.round, row.attempt), []).append(row.device)
    return tuple(
        _round(row, tuple(sorted(selected.get((row.round, row.attempt), ())))) for row in rows
    )


def _round(row: Row[Any], selected: tuple[str, ...]) -> RoundRow:
    opened = deed(row, "opened")
    assert opened is not None
    return RoundRow(
        round=row.round,
        attempt=row.attempt,
        plan=Plan.model_validate_json(row.plan),
        selected=selected,
        rule=parsed(row.rule),
        state=row.state,
        opened=opened,
        deadline_at_s=row.deadline_at_s,
        closed=deed(row, "closed"),
        release=row.release,
        traffic=parsed(row.traffic),
    )
