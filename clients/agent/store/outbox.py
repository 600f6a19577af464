"""The outbox: a plan is answered once, with the same bytes however often it is asked for."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable

from clients.agent.store.database import Database
from clients.agent.store.records import Caps, Outgoing
from fleet.errors import InputError

__all__ = ["Outbox"]


class Outbox:
    """Packed updates by plan id.

    Args:
        database: Where they are kept.
        caps: How many bytes they may hold.
        clock: Seconds since the epoch.
    """

    def __init__(self, database: Database, caps: Caps, clock: Callable[[], float]) -> None:
        self._database = database
        self._caps = caps
        self._clock = clock

    def put(self, plan: str, round: int, payload: bytes, people: Iterable[str] = ()) -> bool:
        """Keep the answer to a plan; the first answer stays.

        Beyond the cap the oldest delivered payloads go, then the oldest undelivered updates.

        Args:
            plan: Id of the plan.
            round: Its round.
            payload: The packed update.
            people: Whose windows shaped it.

        Returns:
            Whether it was new.

        Raises:
            InputError: ``update-too-large`` when it exceeds the cap alone.
            StorageError: Nothing was kept.
        """
        cap = self._caps.outbox_bytes
        if len(payload) > cap:
            raise InputError(
                "update-too-large", f"the update has {len(payload)} bytes, the outbox holds {cap}"
            )
        row = (plan, round, self._clock(), len(payload), zlib.crc32(payload), payload)
        with self._database.write() as connection:
            known = connection.execute("SELECT 1 FROM outbox WHERE plan = ?", (plan,)).fetchone()
            if known:
                return False
            connection.execute(
                "INSERT INTO outbox (plan, round, put_s, size, crc, payload)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
            connection.executemany(
                "INSERT INTO outbox_people VALUES (?, ?)", [(plan, one) for one in set(people)]
            )
            _make_room(connection, cap, plan)
        return True

    def get(self, plan: str) -> Outgoing | None:
        """Return the answer to a plan, delivered or not; None when there is none that is whole."""
        with self._database.read() as connection:
            row = connection.execute(f"{_SELECT} WHERE plan = ?", (plan,)).fetchone()
        if row is None or (row[2] is not None and zlib.crc32(row[2]) != row[5]):
            return None
        return Outgoing(*row[:5])

    def waiting(self) -> tuple[Outgoing, ...]:
        """Return what was not delivered yet, the oldest first."""
        query = f"{_SELECT} WHERE delivered_s IS NULL ORDER BY rowid"
        with self._database.read() as connection:
            rows = connection.execute(query).fetchall()
        return tuple(Outgoing(*row[:5]) for row in rows if zlib.crc32(row[2]) == row[5])

    def mark_delivered(self, plan: str) -> bool:
        """Note that the server has the answer; the first time counts.

        Returns:
            Whether this call changed something.
        """
        with self._database.write() as connection:
            query = "UPDATE outbox SET delivered_s = ? WHERE plan = ? AND delivered_s IS NULL"
            return bool(connection.execute(query, (self._clock(), plan)).rowcount)


LARGEST_MEMORY = 20_000  # delivered updates that are remembered, without their payload
_SELECT = "SELECT plan, round, payload, put_s, delivered_s, crc FROM outbox"


def _make_room(connection: sqlite3.Connection, cap_bytes: int, newest: str) -> None:
    connection.execute(
        "DELETE FROM outbox WHERE size = 0 AND rowid <="
        " (SELECT rowid FROM outbox ORDER BY rowid DESC LIMIT 1 OFFSET ?)",
        (LARGEST_MEMORY,),
    )
    total = connection.execute("SELECT sum(size) FROM outbox").fetchone()[0] or 0
    rows = connection.execute(
        "SELECT plan, size, delivered_s IS NOT NULL FROM outbox WHERE size > 0 AND plan <> ?"
        " ORDER BY delivered_s IS NULL, rowid",
        (newest,),
    ).fetchall()
    for plan, size, delivered in rows:
        if total <= cap_bytes:
            return
        # That a delivered update exists is remembered: the server still holds it.
        change = "UPDATE outbox SET payload = NULL, size = 0" if delivered else "DELETE FROM outbox"
        connection.execute(f"{change} WHERE plan = ?", (plan,))
        total -= size
