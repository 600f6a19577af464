"""The lease: one service at a time writes what a service writes.

    take ──► epoch n + 1 ──► each of its writes checks the epoch in its own transaction,
     ▲                       and renews the lease when that is due (a heartbeat is a write)
     └─ refused while another holds it: until that one gave it back, is known to be dead, or let
        it expire

Whoever lost it cannot write any more, however late it notices: a round is never closed by two.
Operators' changes need no lease.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

from sqlalchemy import Connection, Update, insert, select, update

from fleet.errors import StorageError
from server.registry import standing_tables as tables
from server.registry.ledger import Ledger
from server.registry.records import Record

__all__ = ["LEASE_S", "LONGEST_AHEAD_S", "RENEW_S", "Holder", "Lease", "LeaseRow"]

LEASE_S = 90.0
"""How long a lease lasts that nobody renews; a service waits 60 s at most for its SuperLink."""
RENEW_S = 5.0
"""How old a lease becomes before a write renews it."""
LONGEST_AHEAD_S = 3600.0
"""A lease that would last longer than this was written by a clock that was wrong."""
SERVICE = "service"


class Holder(Record):
    """A process that holds the lease.

    Args:
        host: Names its machine to people.
        place: Where its pid means something: this boot of this machine, this container, and where
            it is known which machine that is; empty where that cannot be known.
        pid: Its process there.
        ticks: When that started, in ticks since boot, since pids are used again.
    """

    host: str
    place: str
    pid: int
    ticks: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class LeaseRow(Record):
    """The lease as it stands.

    Args:
        epoch: How often it was taken.
        holder: Who took it last.
        taken_at_s: When, seconds since the epoch of time.
        renewed_at_s: When it was renewed last.
        expires_at_s: From when on another may take it; the past for one that was given back.
    """

    epoch: int
    holder: Holder
    taken_at_s: float
    renewed_at_s: float
    expires_at_s: float

    def held(self, now: float) -> bool:
        """Tell whether it keeps others out at a time, as far as clocks tell."""
        return 0.0 < self.expires_at_s - now <= LONGEST_AHEAD_S


class Lease:
    """The lease of a registry, and what this process holds of it.

    Args:
        ledger: Where it is kept.

    Attributes:
        epoch: In which this process took it; None while it holds none.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.epoch: int | None = None

    def get(self) -> LeaseRow | None:
        """Return the lease; None when it was never taken."""
        with self._ledger.database.read() as connection:
            return _row(connection)

    def take(
        self, holder: Holder, gone: Callable[[Holder, float], bool] = lambda holder, silent_s: False
    ) -> int:
        """Take the lease; return its epoch.

        Args:
            holder: This process.
            gone: Tells that a process is known to be dead, of which nothing was heard for so many
                seconds.

        Raises:
            StorageError: ``registry-served`` while another service holds it.
        """
        kept = tables.leases

        def work(connection: Connection) -> int:
            now, before = self._ledger.clock(), _row(connection)
            held = before is not None and before.held(now)
            if before and held and not gone(before.holder, now - before.renewed_at_s):
                raise self._served(before, now)
            epoch = 1 if before is None else before.epoch + 1
            values = {"epoch": epoch, **holder.model_dump(), "taken_at_s": now, **_until(now)}
            if before is None:
                connection.execute(insert(kept).values(name=SERVICE, **values))
            else:
                connection.execute(update(kept).where(kept.c.name == SERVICE).values(**values))
            return epoch

        self.epoch = self._ledger.database.change(work)
        return self.epoch

    def check(self, connection: Connection) -> None:
        """Make sure that this process holds the lease, and renew it when that is due.

        Raises:
            StorageError: ``lease-lost``.
        """
        now, row = self._ledger.clock(), _row(connection)
        if row is None or row.epoch != self.epoch:
            raise self._lost(row)
        if not 0.0 <= now - row.renewed_at_s < RENEW_S:
            connection.execute(_mine(row.epoch).values(**_until(now)))

    def give_back(self) -> None:
        """Let another take it at once; does nothing for one who holds none."""
        epoch, self.epoch = self.epoch, None
        if epoch is None:
            return
        now = self._ledger.clock()
        self._ledger.database.change(
            lambda connection: connection.execute(_mine(epoch).values(expires_at_s=now))
        )

    def _served(self, row: LeaseRow, now: float) -> StorageError:
        return StorageError(
            "registry-served",
            f"{self._ledger.database.where} is served by {row.holder} since "
            f"{_utc(row.taken_at_s)}, heard of {now - row.renewed_at_s:.0f} s ago; a registry has "
            "one service",
            f"Stop that one first (fleet server status); if it is dead, its lease ends by itself "
            f"at {_utc(row.expires_at_s)}.",
        )

    def _lost(self, row: LeaseRow | None) -> StorageError:
        by = "nobody" if row is None else f"{row.holder} since {_utc(row.taken_at_s)}"
        return StorageError(
            "lease-lost",
            f"{self._ledger.database.where} is served by {by}, not by this service, which may not "
            "write to it any more",
            "One of the two is one too many; see which: fleet server status",
        )


def _mine(epoch: int) -> Update:
    kept = tables.leases
    return update(kept).where(kept.c.name == SERVICE, kept.c.epoch == epoch)


def _until(now: float) -> dict[str, float]:
    return {"renewed_at_s": now, "expires_at_s": now + LEASE_S}


def _row(connection: Connection) -> LeaseRow | None:
    kept = tables.leases
    row = connection.execute(select(kept).where(kept.c.name == SERVICE)).one_or_none()
    if row is None:
        return None
    holder = Holder(host=row.host, place=row.place, pid=row.pid, ticks=row.ticks)
    return LeaseRow(
        epoch=row.epoch,
        holder=holder,
        taken_at_s=row.taken_at_s,
        renewed_at_s=row.renewed_at_s,
        expires_at_s=row.expires_at_s,
    )


def _utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
