"""Releases: immutable, numbered without reuse; one of them is the fleet's."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from fleet.errors import InputError, MismatchError
from fleet.federate.releases import Release
from fleet.federate.rule import RuleSpec
from server.registry import tables
from server.registry.bases import bases_of, no_base
from server.registry.ledger import Ledger, Outcome, canonical
from server.registry.memories import memory_of
from server.registry.packing import packed_state, unpacked_release
from server.registry.records import ReleaseRow
from server.registry.rows import checked_release, cleaned, done, releases_of
from server.rules.memory import Memory

__all__ = ["Releases", "insert_promotion", "insert_release", "next_number"]


class Releases:
    """The releases of a registry. Every change names its ``actor``.

    Args:
        ledger: Where they are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def add(
        self,
        release: Release,
        *,
        signature: bytes | None = None,
        why: str = "",
        actor: str,
        key: str | None = None,
    ) -> ReleaseRow:
        """Keep a release that no round made, e.g. number 0; nothing changes when it is there.

        Raises:
            MismatchError: ``release-number`` or ``wrong-parent``.
            InputError: ``no-such-base``.
        """

        def work(connection: Connection) -> Outcome[ReleaseRow]:
            if found := releases_of(connection, tables.releases.c.digest == release.digest):
                return Outcome(found[0], _subject(release.number), changed=False)
            by = done("created", self._ledger.clock(), actor, why)
            insert_release(connection, release, signature, by)
            return Outcome(_one(connection, release.number), _subject(release.number))

        asked = {"release": release.number, "digest": release.digest, "why": cleaned(why)}
        return self._ledger.change("release.add", asked, work, ReleaseRow, actor=actor, key=key)

    def get(self, number: int) -> ReleaseRow:
        """Return a release, withdrawn or not.

        Raises:
            InputError: ``no-such-release``.
        """
        with self._ledger.database.read() as connection:
            return _one(connection, number)

    def all(self) -> tuple[ReleaseRow, ...]:
        """Return all releases, by number."""
        with self._ledger.database.read() as connection:
            return releases_of(connection)

    def bases(self) -> dict[int, str]:
        """Return the digest of the base of every release, by number."""
        kept = tables.releases.c
        with self._ledger.database.read() as connection:
            rows = connection.execute(select(kept.number, kept.base)).all()
        return {row.number: row.base for row in rows}

    def lineage(self, number: int) -> tuple[ReleaseRow, ...]:
        """Return a release and all that it was made from, back to the first, over all its bases.

        Raises:
            InputError: ``no-such-release``.
        """
        with self._ledger.database.read() as connection:
            line = [_one(connection, number)]
            by_digest = {row.digest: row for row in releases_of(connection)}
        while line[-1].parent:
            line.append(by_digest[line[-1].parent])
        return tuple(line)

    def load(self, number: int) -> Release:
        """Return a release with its core state, checked against its digest.

        Raises:
            InputError: ``no-such-release``.
            StorageError: ``release-damaged``.
        """
        kept = tables.releases.c
        with self._ledger.database.read() as connection:
            row = _one(connection, number)
            content = connection.execute(
                select(kept.state).where(kept.number == number)
            ).scalar_one()
        return unpacked_release(row, bytes(content))

    def memory(self, number: int, rule: RuleSpec) -> Memory:
        """Return what a rule remembered when it made a release; nothing where it did not make it.

        Raises:
            InputError: ``no-such-release``.
            StorageError: ``memory-damaged``.
        """
        with self._ledger.database.read() as connection:
            return memory_of(connection, _one(connection, number), rule)

    def current(self) -> ReleaseRow | None:
        """Return the release that the fleet was moved to last; None before the first promotion."""
        with self._ledger.database.read() as connection:
            return _current(connection)

    def next_number(self) -> int:
        """Return the number that the next release takes."""
        with self._ledger.database.read() as connection:
            return next_number(connection)

    def promote(
        self, number: int, *, why: str = "", actor: str, key: str | None = None
    ) -> ReleaseRow:
        """Make a release the fleet's, a later or an earlier one (a rollback).

        Raises:
            InputError: ``no-such-release`` or ``release-withdrawn``.
        """

        def work(connection: Connection) -> Outcome[ReleaseRow]:
            row, before = checked_release(connection, number), _current(connection)
            if before is not None and before.number == number:
                return Outcome(row, _subject(number), changed=False)
            insert_promotion(connection, number, self._ledger.clock(), actor, why)
            left = {"left": None if before is None else before.number}
            return Outcome(_one(connection, number), _subject(number), left)

        asked = {"release": number, "why": cleaned(why)}
        return self._ledger.change("release.promote", asked, work, ReleaseRow, actor=actor, key=key)

    def withdraw(self, number: int, *, why: str, actor: str, key: str | None = None) -> ReleaseRow:
        """Forbid that devices are moved to a release; changes nothing when it is forbidden.

        Raises:
            InputError: ``no-such-release``, or ``release-in-use`` while it is the fleet's or a
                device is pinned to it.
        """

        def work(connection: Connection) -> Outcome[ReleaseRow]:
            row = _one(connection, number)
            if row.withdrawn is not None:
                return Outcome(row, _subject(number), changed=False)
            _check_unused(connection, number)
            table = tables.releases
            values = done("withdrawn", self._ledger.clock(), actor, why)
            connection.execute(update(table).where(table.c.number == number).values(**values))
            return Outcome(_one(connection, number), _subject(number))

        asked = {"release": number, "why": cleaned(why)}
        return self._ledger.change(
            "release.withdraw", asked, work, ReleaseRow, actor=actor, key=key
        )


def next_number(connection: Connection) -> int:
    """Return the number that the next release takes: numbers are never used twice."""
    last = connection.execute(select(func.max(tables.releases.c.number))).scalar()
    return 0 if last is None else int(last) + 1


def insert_release(
    connection: Connection, release: Release, signature: bytes | None, created: dict[str, Any]
) -> None:
    """Keep a release; part of the caller's transaction.

    Raises:
        MismatchError: ``release-number`` or ``wrong-parent``.
        InputError: ``no-such-base``.
    """
    if release.number != (free := next_number(connection)):
        raise MismatchError(
            "release-number",
            f"releases are numbered without gaps: the next is {free}, not {release.number}",
            "Make it again with that number.",
        )
    kept = tables.releases.c
    parents = select(kept.number).where(kept.digest == release.parent)
    first = release.number == 0 and not release.parent
    if not first and connection.execute(parents).scalar() is None:
        raise MismatchError(
            "wrong-parent",
            f"release {release.number} was made from {release.parent[:12]}…, which is not here",
            "Add the release that it was made from first.",
        )
    if not bases_of(connection, release.base):
        raise no_base(release.base)
    row = {
        "number": release.number,
        "digest": release.digest,
        "parent": release.parent,
        "base": release.base,
        "frame": release.frame,
        "method": release.method,
        "state_digest": release.state.digest,
        "provenance": canonical(dict(release.provenance)),
        "signature": signature,
        "state": packed_state(release.state),
        **created,
    }
    connection.execute(insert(tables.releases).values(**row))


def insert_promotion(
    connection: Connection, number: int, at_s: float, actor: str, why: str
) -> None:
    """Make a release the fleet's; part of the caller's transaction."""
    row = {"release": number, **done("promoted", at_s, actor, why)}
    connection.execute(insert(tables.promotions).values(**row))


def _one(connection: Connection, number: int) -> ReleaseRow:
    found = releases_of(connection, tables.releases.c.number == number)
    return found[0] if found else checked_release(connection, number)


def _current(connection: Connection) -> ReleaseRow | None:
    moves = tables.promotions.c
    last = select(moves.release).order_by(moves.id.desc()).limit(1)
    number = connection.execute(last).scalar()
    return None if number is None else _one(connection, int(number))


def _check_unused(connection: Connection, number: int) -> None:
    current = _current(connection)
    pinned = tables.devices.c
    devices = connection.execute(
        select(func.count()).select_from(tables.devices).where(pinned.pinned == number)
    ).scalar_one()
    if devices or (current is not None and current.number == number):
        holders = f"{devices} device(s) are pinned to it" if devices else "the fleet is on it"
        raise InputError(
            "release-in-use",
            f"release {number} cannot be withdrawn: {holders}",
            "Move them first: fleet release promote, fleet release pin.",
        )


def _subject(number: int) -> str:
    return f"release {number}"
