"""Operators' certificates: which were issued and which were taken back, as the audit has it.

    operator.issue ──► good ──► expired
                        └─────► revoked (operator.revoke)

Only a certificate that is written down here is let in: what somebody signs with a stolen authority
is not. The audit is their one home, so the list is hash-chained and in every backup, and a
revocation holds for whoever asks the next time, at any process of this registry.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum
from typing import Any

from sqlalchemy import Connection, select

from fleet.errors import InputError
from server.control.certificates import Identity
from server.control.errors import AccessError
from server.control.roles import Role
from server.control.verbs.shown import utc
from server.registry import Registry, chain, tables
from server.registry.ledger import Ledger, Outcome
from server.registry.records import Deed, Record
from server.registry.rows import cleaned

__all__ = ["Certificate", "Operators", "Standing", "revoked_serials"]

ISSUE, REVOKE = "operator.issue", "operator.revoke"


class Standing(str, Enum):
    """Whether a certificate lets somebody in."""

    good = "good"
    expired = "expired"
    revoked = "revoked"


class Certificate(Record):
    """One certificate.

    Args:
        serial: Its number, 40 hexadecimal digits.
        name: As the audit names its owner.
        role: What they may do.
        expires_at_s: When it ends, seconds since the epoch.
        issued: When and by whom.
        revoked: When, by whom and why; None while it was not.
    """

    serial: str
    name: str
    role: Role
    expires_at_s: float
    issued: Deed
    revoked: Deed | None = None

    def state(self, now_s: float) -> Standing:
        """Return how it stands at a time, seconds since the epoch."""
        if self.revoked is not None:
            return Standing.revoked
        return Standing.good if now_s <= self.expires_at_s else Standing.expired


class Operators:
    """The certificates of a registry; threads may share it.

    Args:
        registry: Where they are written down.
        clock: Seconds since the epoch.
    """

    def __init__(self, registry: Registry, clock: Callable[[], float]) -> None:
        self._ledger = Ledger(registry.database, clock)
        self._lock = threading.Lock()
        self._known: dict[str, Certificate] = {}
        self._seen = 0

    def all(self) -> tuple[Certificate, ...]:
        """Return all certificates, by name and age."""
        with self._ledger.database.read() as connection:
            return _sorted(_read(connection))

    def check(self, who: Identity) -> None:
        """Refuse whoever comes by a certificate that was revoked, or that nobody wrote down.

        Only what the audit has since the last check is read.

        Raises:
            AccessError: ``certificate-revoked`` or ``certificate-unknown``.
        """
        with self._lock, self._ledger.database.read() as connection:
            last, _ = chain.head(connection)
            if last < self._seen:  # another registry is there: a backup was put back
                self._known, self._seen = {}, 0
            self._known = _read(connection, self._seen, self._known)
            self._seen = last
            found = self._known.get(who.serial)
        if found is None:
            raise AccessError(
                "certificate-unknown",
                f"the certificate of {who.name}, {who.serial[:16]}…, is not among those that this "
                "server has issued",
                "Ask the server's admin for a new one: fleet operator issue NAME --role ROLE",
            )
        if found.revoked is not None:
            why = f": {found.revoked.why}" if found.revoked.why else ""
            raise AccessError(
                "certificate-revoked",
                f"the certificate of {who.name}, {who.serial[:16]}…, was revoked by "
                f"{found.revoked.by} at {utc(found.revoked.at_s)}{why}",
                "Ask the server's admin for a new one: fleet operator issue NAME --role ROLE",
            )

    def issued(self, who: Identity, expires_at_s: float, *, actor: str) -> Certificate:
        """Write a certificate down, before anybody has it; a second time changes nothing.

        Args:
            who: Whose it is.
            expires_at_s: When it ends, seconds since the epoch.
            actor: Who issues it.

        Raises:
            StorageError: Nothing was kept.
        """
        asked = {"operator": who.name, "role": who.role.value, "serial": who.serial}

        def work(connection: Connection) -> Outcome[Certificate]:
            if before := _read(connection).get(who.serial):
                return Outcome(before, who.name, changed=False)
            deed = Deed(at_s=self._ledger.clock(), by=actor, why="")
            made = Certificate(
                serial=who.serial,
                name=who.name,
                role=who.role,
                expires_at_s=expires_at_s,
                issued=deed,
            )
            return Outcome(made, who.name)

        whole = {**asked, "expires_at_s": expires_at_s}
        return self._ledger.change(ISSUE, whole, work, Certificate, actor=actor)

    def chosen(self, operator: str, *, last_admin: bool = False) -> tuple[Certificate, ...]:
        """Return what a revocation would take back, by name and age.

        Args:
            operator: A serial number; or a name, for all of theirs that are good.
            last_admin: Also when no admin's is left.

        Raises:
            InputError: ``no-such-operator`` or ``last-admin``.
        """
        with self._ledger.database.read() as connection:
            return self._chosen(connection, operator, last_admin)

    def revoke(
        self,
        operator: str,
        *,
        last_admin: bool = False,
        why: str,
        actor: str,
        key: str | None = None,
    ) -> tuple[Certificate, ...]:
        """Take certificates back, see :meth:`chosen`; in one change.

        Raises:
            InputError: ``no-such-operator`` or ``last-admin``.
            StorageError: Nothing was kept.
        """

        def work(connection: Connection) -> Outcome[tuple[Certificate, ...]]:
            found = self._chosen(connection, operator, last_admin)
            deed = Deed(at_s=self._ledger.clock(), by=actor, why=cleaned(why))
            after = tuple(each.model_copy(update={"revoked": deed}) for each in found)
            subject = found[0].name if found else operator
            serials = {"serials": [each.serial for each in found]}
            return Outcome(after, subject, serials, changed=bool(found))

        asked = {"operator": operator, "last_admin": last_admin, "why": cleaned(why)}
        kind = tuple[Certificate, ...]
        return self._ledger.change(REVOKE, asked, work, kind, actor=actor, key=key)

    def _chosen(
        self, connection: Connection, operator: str, last_admin: bool
    ) -> tuple[Certificate, ...]:
        known, now_s = _read(connection), self._ledger.clock()
        good = {k: each for k, each in known.items() if each.state(now_s) is Standing.good}
        if operator.lower() in known:
            one = known[operator.lower()]
            found = {} if one.revoked is not None else {one.serial: one}
        elif any(each.name == operator for each in known.values()):
            found = {k: each for k, each in good.items() if each.name == operator}
        else:
            raise InputError(
                "no-such-operator",
                f"no certificate has the serial number or name {operator!r}",
                "See them: fleet operator list",
            )
        admins = {k for k, each in good.items() if each.role is Role.admin}
        if not last_admin and admins & found.keys() and not admins - found.keys():
            raise InputError(
                "last-admin",
                f"after revoking {operator} no admin could come in from elsewhere",
                "Make another first: fleet operator issue NAME --role admin; or add --last-admin.",
            )
        return _sorted(found)


def revoked_serials(connection: Connection) -> tuple[str, ...]:
    """Return the serial numbers of all certificates that were taken back."""
    return tuple(sorted(k for k, each in _read(connection).items() if each.revoked is not None))


def _read(
    connection: Connection, after: int = 0, known: dict[str, Certificate] | None = None
) -> dict[str, Certificate]:
    """Return the certificates by serial number: those known, and what the audit has since."""
    kept = tables.audit
    query = select(kept).where(kept.c.seq > after, kept.c.verb.in_((ISSUE, REVOKE)))
    found = dict(known or {})
    for each in connection.execute(query.order_by(kept.c.seq)):
        row = chain.row_of(each)
        detail: dict[str, Any] = dict(row.detail)
        if row.verb == ISSUE:
            found[detail["serial"]] = Certificate(
                serial=detail["serial"],
                name=detail["operator"],
                role=Role(detail["role"]),
                expires_at_s=detail["expires_at_s"],
                issued=Deed(at_s=row.at_s, by=row.actor, why=""),
            )
            continue
        deed = Deed(at_s=row.at_s, by=row.actor, why=detail["why"])
        for serial in detail["serials"]:
            found[serial] = found[serial].model_copy(update={"revoked": deed})
    return found


def _sorted(found: dict[str, Certificate]) -> tuple[Certificate, ...]:
    order = sorted(found.values(), key=lambda each: (each.name, each.issued.at_s, each.serial))
    return tuple(order)
