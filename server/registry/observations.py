"""What the service found: that it is alive, who serves what, what devices moved and how they judge.

Findings are no decisions, so they leave no audit row; an evaluation, which decisions rest on, does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from pydantic import Field
from sqlalchemy import Connection, delete, insert, select, update

from server.registry import standing_tables as tables
from server.registry.ledger import Ledger, Outcome, canonical, parsed
from server.registry.records import Record
from server.registry.rows import checked_release, cleaned

__all__ = ["DAY_S", "KEPT_DAYS", "Delivery", "Heartbeat", "Observations"]

DAY_S = 86_400.0
KEPT_DAYS = 35
"""Days of which the bytes of each device stay."""
LARGEST_ABSENT = 1000
"""Devices of which it stays why they did not judge a release."""
SERVICE = "service"

Confusions = Mapping[str, Sequence[Sequence[int]]]


class Heartbeat(Record):
    """That the service runs.

    Args:
        alive_at_s: When it said so last, seconds since the epoch.
        started_at_s: When it started.
        pid: Its process, on its machine.
        version: Of its software.
        doing: What it does, or what it waits for; JSON.
    """

    alive_at_s: float
    started_at_s: float
    pid: int
    version: str
    doing: Mapping[str, Any] = Field(default_factory=dict)


class Delivery(Record):
    """What came of telling a device to serve a release.

    Args:
        device: Who.
        release: Number of the release.
        tries: How often it was told in a row.
        told_at_s: When it was told last, seconds since the epoch.
        reason: Why it does not serve it; empty when it does.
    """

    device: str
    release: int
    tries: int
    told_at_s: float
    reason: str = ""


class Observations:
    """The findings of a registry.

    Args:
        ledger: Where they are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def beat(
        self, *, pid: int, version: str, started_at_s: float, doing: Mapping[str, Any]
    ) -> None:
        """Say that the service is alive."""
        values = {
            "alive_at_s": self._ledger.clock(),
            "started_at_s": started_at_s,
            "pid": pid,
            "version": version,
            "doing": canonical(dict(doing)),
        }
        kept = tables.heartbeat

        def work(connection: Connection) -> None:
            mine = kept.c.name == SERVICE
            if not connection.execute(update(kept).where(mine).values(**values)).rowcount:
                connection.execute(insert(kept).values(name=SERVICE, **values))

        self._ledger.write(work)

    def heartbeat(self) -> Heartbeat | None:
        """Return when the service was alive last; None when it never was."""
        kept = tables.heartbeat
        with self._ledger.database.read() as connection:
            row = connection.execute(select(kept).where(kept.c.name == SERVICE)).one_or_none()
        if row is None:
            return None
        return Heartbeat(
            alive_at_s=row.alive_at_s,
            started_at_s=row.started_at_s,
            pid=row.pid,
            version=row.version,
            doing=parsed(row.doing),
        )

    def spend(self, moved: Mapping[str, int]) -> None:
        """Add bytes to what devices moved today (UTC).

        Args:
            moved: Bytes by enrolled device.
        """
        if not moved:
            return
        kept, day = tables.device_bytes, self._today()

        def work(connection: Connection) -> None:
            connection.execute(delete(kept).where(kept.c.day <= day - KEPT_DAYS))
            for device, count in sorted(moved.items()):
                own = (kept.c.device == device) & (kept.c.day == day)
                more = update(kept).where(own).values(bytes=kept.c.bytes + count)
                if not connection.execute(more).rowcount:
                    row = {"device": device, "day": day, "bytes": count}
                    connection.execute(insert(kept).values(row))

        self._ledger.write(work)

    def spent(self) -> dict[str, int]:
        """Return the bytes that each device moved today (UTC)."""
        kept = tables.device_bytes
        query = select(kept.c.device, kept.c.bytes).where(kept.c.day == self._today())
        with self._ledger.database.read() as connection:
            return {row.device: int(row.bytes) for row in connection.execute(query)}

    def told(self, device: str, release: int, reason: str) -> Delivery:
        """Keep what came of telling a device to serve a release.

        Args:
            device: Who.
            release: Number of the release.
            reason: Why it does not serve it; empty when it does.
        """
        kept, now = tables.deliveries, self._ledger.clock()

        def work(connection: Connection) -> Delivery:
            own = kept.c.device == device
            before = connection.execute(select(kept).where(own)).one_or_none()
            again = before is not None and before.release == release and before.reason
            tries = before.tries + 1 if before is not None and again else 1
            found: dict[str, Any] = {"release": release, "tries": tries}
            found |= {"told_at_s": now, "reason": cleaned(reason)}
            if before is None:
                connection.execute(insert(kept).values(device=device, **found))
            else:
                connection.execute(update(kept).where(own).values(**found))
            return Delivery(device=device, **found)

        return self._ledger.write(work)

    def deliveries(self) -> dict[str, Delivery]:
        """Return the last delivery to each device that was ever told to serve a release."""
        with self._ledger.database.read() as connection:
            rows = connection.execute(select(tables.deliveries)).all()
        return {row.device: Delivery.model_validate(dict(row._mapping)) for row in rows}

    def evaluated(
        self,
        release: int,
        counts: Confusions,
        *,
        absent: Mapping[str, str] | None = None,
        actor: str,
        key: str | None = None,
    ) -> int:
        """Keep how devices judge a release; a later judgement takes the place of an earlier one.

        Args:
            release: Number of the release.
            counts: Confusion counts ``(classes, classes)`` by device, rows are the truth.
            absent: Why others have no counts, by device; the first :data:`LARGEST_ABSENT` of them
                stay, in the audit, with the number of those that are ``unlisted``.
            actor: Who.
            key: Idempotency key.

        Returns:
            How many devices judged it.

        Raises:
            InputError: ``no-such-release``.
        """
        kept = tables.evaluations

        def work(connection: Connection) -> Outcome[int]:
            checked_release(connection, release)
            now = self._ledger.clock()
            connection.execute(delete(kept).where(kept.c.release == release))
            rows = [
                {"release": release, "device": device, "confusion": json.dumps(each), "at_s": now}
                for device, each in sorted(counts.items())
            ]
            if rows:
                connection.execute(insert(kept), rows)
            first = islice((absent or {}).items(), LARGEST_ABSENT)
            told = {device: cleaned(why) for device, why in first}
            detail = {"devices": len(rows)} | ({"absent": told} if told else {})
            if more := len(absent or {}) - len(told):
                detail["unlisted"] = more
            return Outcome(len(rows), f"release {release}", detail)

        asked = {"release": release}
        return self._ledger.change("release.evaluate", asked, work, int, actor=actor, key=key)

    def evaluation(self, release: int) -> dict[str, list[list[int]]]:
        """Return the confusion counts of a release by device; empty where nobody judged it."""
        kept = tables.evaluations
        query = select(kept.c.device, kept.c.confusion).where(kept.c.release == release)
        with self._ledger.database.read() as connection:
            found = connection.execute(query).all()
        return {row.device: json.loads(row.confusion) for row in sorted(found)}

    def _today(self) -> int:
        return int(self._ledger.clock() // DAY_S)
