"""The fleet's policy: every version stays; the last one holds."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from fleet.errors import InputError
from fleet.federate.records import GUARDS
from server.registry import standing_tables as tables
from server.registry.ledger import Ledger, Outcome, canonical
from server.registry.records import Deed, Record
from server.registry.rows import cleaned, deed, done
from server.standing.policy import FleetPolicy

__all__ = ["Policies", "PolicyRow"]


class PolicyRow(Record):
    """One version of the policy.

    Args:
        version: From 1, without gaps.
        policy: What it says.
        set: When and by whom.
    """

    version: int
    policy: FleetPolicy
    set: Deed


class Policies:
    """The policy of a registry, and what it was.

    Args:
        ledger: Where it is kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def set(
        self, policy: FleetPolicy, *, why: str = "", actor: str, key: str | None = None
    ) -> PolicyRow:
        """Make a policy the fleet's from its next round on; changes nothing when it is already.

        Raises:
            StorageError: Nothing was kept.
        """
        # Servers from before there were guards read a policy without any, as devices do a plan.
        whole = policy.model_dump(mode="json")
        content = {name: value for name, value in whole.items() if name not in GUARDS or value}

        def work(connection: Connection) -> Outcome[PolicyRow]:
            before = _newest(connection)
            if before is not None and before.policy == policy:
                return Outcome(before, _subject(before.version), changed=False)
            version = 1 if before is None else before.version + 1
            row = {"version": version, "policy": canonical(content)}
            by = done("set", self._ledger.clock(), actor, why)
            connection.execute(insert(tables.policies).values(**row, **by))
            after = _newest(connection)
            assert after is not None
            return Outcome(after, _subject(version))

        asked = {"policy": content, "why": cleaned(why)}
        return self._ledger.change("policy.set", asked, work, PolicyRow, actor=actor, key=key)

    def get(self) -> tuple[int, FleetPolicy]:
        """Return the policy that holds, and its version.

        Raises:
            InputError: ``no-policy`` before the first one.
        """
        found = self.newest()
        if found is None:
            raise InputError("no-policy", "the fleet has no policy yet", "fleet policy set")
        return found.version, found.policy

    def newest(self) -> PolicyRow | None:
        """Return the policy that holds; None before the first one."""
        with self._ledger.database.read() as connection:
            return _newest(connection)

    def history(self) -> tuple[PolicyRow, ...]:
        """Return all versions, in order."""
        kept = tables.policies
        with self._ledger.database.read() as connection:
            rows = connection.execute(select(kept).order_by(kept.c.version)).all()
        return tuple(_row(each) for each in rows)


def _newest(connection: Connection) -> PolicyRow | None:
    kept = tables.policies
    last = select(func.max(kept.c.version)).scalar_subquery()
    row = connection.execute(select(kept).where(kept.c.version == last)).one_or_none()
    return None if row is None else _row(row)


def _row(row: Row[Any]) -> PolicyRow:
    given = deed(row, "set")
    assert given is not None
    return PolicyRow(
        version=row.version, policy=FleetPolicy.model_validate_json(row.policy), set=given
    )


def _subject(version: int) -> str:
    return f"policy {version}"
