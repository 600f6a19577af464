"""One consistent look at a registry, in numbers; what is over is counted once.

Rounds that are closed never change, so their sums are carried from one look to the next and a look
costs as much as has happened since.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, func, or_, select, text

from server.metrics.records import BUCKETS_S, Beat, Judged, Last, Seen, Snapshot, Tally
from server.registry import Registry, chain, standing_tables, tables
from server.registry.database import Database
from server.registry.records import RoundState

__all__ = ["read"]

PACKED, WIRE = ("bytes_up", "bytes_down"), ("wire_bytes_up", "wire_bytes_down")
_SIDE_FILES = ("", "-wal", "-shm")


def read(registry: Registry, before: Tally | None = None) -> Snapshot:
    """Look at a registry, in one transaction that sees one state of it.

    Args:
        registry: Where.
        before: Sums of an earlier look at the same registry; None counts everything.

    Raises:
        StorageError: The registry's own codes.
    """
    database = registry.database
    with database.read() as connection:
        found = _rounds(connection, before or Tally())
        return Snapshot(
            **found,
            devices=_devices(connection),
            undelivered=_count(
                connection, standing_tables.deliveries, standing_tables.deliveries.c.reason != ""
            ),
            orders=_orders(connection),
            beat=_beat(connection),
            newest=_most(connection, tables.releases, "number"),
            current=_current(connection),
            policy=_most(connection, standing_tables.policies, "version") or 0,
            audit=chain.head(connection)[0],
            judged=_judged(connection),
            size=_size(database, connection),
        )


def _rounds(connection: Connection, before: Tally) -> dict[str, Any]:
    kept = tables.rounds.c
    known = and_(kept.round == before.through[0], kept.attempt == before.through[1])
    if before.through > (0, 0) and not _count(connection, tables.rounds, known):
        before = Tally()  # a backup was put back
    is_open = kept.state == RoundState.open.value
    closed = before + _tally(connection, and_(_after(tables.rounds, before.through), ~is_open))
    opened = _tally(connection, is_open)
    due = connection.execute(select(kept.deadline_at_s).where(is_open)).scalar()
    return {
        "closed": closed,
        "open": opened if due is not None else None,
        "deadline_at_s": due,
        "last": _last(connection, closed.through),
    }


def _tally(connection: Connection, which: ColumnElement[bool]) -> Tally:
    """Sum over some rounds."""
    kept = tables.rounds.c
    columns = (kept.round, kept.attempt, kept.state, kept.traffic, kept.opened_at_s)
    outcomes: Counter[str] = Counter()
    traffic: Counter[str] = Counter()
    lasted, seconds, through = [0] * (len(BUCKETS_S) + 1), 0.0, (0, 0)
    for row in connection.execute(select(*columns, kept.closed_at_s).where(which)):
        through = max(through, (row.round, row.attempt))
        outcomes[row.state] += 1
        traffic.update(_traffic(row.traffic))
        if row.closed_at_s is not None:
            # A clock that was set back makes no round shorter than nothing.
            took = max(0.0, row.closed_at_s - row.opened_at_s)
            seconds += took
            lasted[sum(took > bound for bound in BUCKETS_S)] += 1
    return Tally(
        through,
        dict(outcomes),
        sum(_by(connection, tables.updates, None, which).values()),
        _by(connection, tables.refusals, "reason", which),
        dict(traffic),
        tuple(lasted),
        seconds,
    )


def _traffic(kept: str) -> dict[str, int]:
    found = json.loads(kept)
    return {name: int(found.get(name, 0)) for name in (*PACKED, *WIRE)}


def _by(
    connection: Connection, table: Table, column: str | None, which: ColumnElement[bool]
) -> dict[str, int]:
    """Count the rows of some rounds, by a column."""
    kept, rounds = table.c, tables.rounds.c
    by = kept[column] if column else rounds.state
    query = select(by, func.count()).select_from(table)
    same = and_(kept.round == rounds.round, kept.attempt == rounds.attempt)
    query = query.join(tables.rounds, same).where(which).group_by(by)
    return {str(name): int(count) for name, count in connection.execute(query)}


def _after(table: Table, through: tuple[int, int]) -> ColumnElement[bool]:
    kept, (number, attempt) = table.c, through
    return or_(kept.round > number, and_(kept.round == number, kept.attempt > attempt))


def _last(connection: Connection, which: tuple[int, int]) -> Last | None:
    kept = tables.rounds
    own = and_(kept.c.round == which[0], kept.c.attempt == which[1])
    row = connection.execute(select(kept).where(own)).one_or_none()
    if row is None:
        return None
    took = max(0.0, row.closed_at_s - row.opened_at_s)
    absent = _by(connection, standing_tables.absences, "reason", own)
    return Last(took, row.state == RoundState.released.value, absent)


def _devices(connection: Connection) -> tuple[Seen, ...]:
    kept = tables.devices.c
    columns = (kept.state, kept.serves_release, kept.pinned, kept.seen_at_s)
    query = select(*columns, func.count()).group_by(*columns)
    return tuple(Seen(*row) for row in connection.execute(query))


def _orders(connection: Connection) -> dict[str, int]:
    kept = standing_tables.orders.c
    unfinished = kept.state.in_(("waiting", "taken"))
    query = select(kept.state, func.count()).where(unfinished).group_by(kept.state)
    return {str(state): int(count) for state, count in connection.execute(query)}


def _beat(connection: Connection) -> Beat | None:
    row = connection.execute(select(standing_tables.heartbeat)).first()
    return None if row is None else Beat(row.alive_at_s, row.started_at_s, row.version)


def _current(connection: Connection) -> int | None:
    kept = tables.promotions.c
    query = select(kept.release).order_by(kept.id.desc()).limit(1)
    return connection.execute(query).scalar()


def _judged(connection: Connection) -> Judged | None:
    kept = standing_tables.evaluations.c
    newest = select(kept.release).order_by(kept.at_s.desc(), kept.release.desc()).limit(1)
    release = connection.execute(newest).scalar()
    if release is None:
        return None
    rows = connection.execute(select(kept.confusion).where(kept.release == release)).scalars()
    return Judged(release, tuple(_frozen(json.loads(each)) for each in rows))


def _frozen(counts: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(map(int, row)) for row in counts)


def _size(database: Database, connection: Connection) -> int:
    if database.path is None:
        query = text("SELECT pg_database_size(current_database())")
        return int(connection.execute(query).scalar_one())
    total = 0
    for end in _SIDE_FILES:
        with suppress(FileNotFoundError):
            total += Path(f"{database.path}{end}").stat().st_size
    return total


def _most(connection: Connection, table: Table, column: str) -> int | None:
    found = connection.execute(select(func.max(table.c[column]))).scalar()
    return None if found is None else int(found)


def _count(connection: Connection, table: Table, which: ColumnElement[bool]) -> int:
    query = select(func.count()).select_from(table).where(which)
    return int(connection.execute(query).scalar_one())
