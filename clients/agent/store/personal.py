"""The private core: at most one, with what it belongs to and whose windows it learned from."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clients.agent.store.database import Database
from fleet.errors import StorageError

__all__ = ["DROPS", "LARGEST_PERSONAL_BYTES", "PersonalRow", "PersonalTable"]

LARGEST_PERSONAL_BYTES = 32 << 20
"""A larger one is not kept."""
DROPS = "personal.drops"
"""Key of the state: how often the owner dropped it, so that a training under way notices."""


@dataclass(frozen=True)
class PersonalRow:
    """A private core as it is kept.

    Attributes:
        base: Digest of the base.
        frame: Digest of its frames.
        layout: Digest of the core's layout.
        method: What is trained.
        release: Number of the release that it was trained on.
        state: Digest of that release's core state.
        payload: Its own bytes.
        people: Whose windows shaped it, now or before.
        serves: Whether it is served beside the release that it was judged with.
        judged: What the windows kept back said of it, JSON; empty before.
        made_s: When it was kept, seconds since the epoch.
    """

    base: str
    frame: str
    layout: str
    method: str
    release: int
    state: str
    payload: bytes
    people: frozenset[str]
    serves: bool = False
    judged: Mapping[str, Any] = field(default_factory=dict)
    made_s: float = 0.0

    @property
    def digest(self) -> str:
        """SHA-256 over the bytes and all that they belong to."""
        about = [self.base, self.frame, self.layout, self.method, self.release, self.state]
        return hashlib.sha256(json.dumps(about).encode() + b"\0" + self.payload).hexdigest()


class PersonalTable:
    """At most one private core.

    Args:
        database: Where it is kept.
        clock: Seconds since the epoch.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def put(self, row: PersonalRow) -> None:
        """Keep a core in the place of whatever was kept; ``made_s`` becomes now.

        Raises:
            StorageError: ``personal-too-large``, or the disk's; the one before stays.
        """
        if len(row.payload) > LARGEST_PERSONAL_BYTES:
            raise StorageError(
                "personal-too-large",
                f"a private core has at most {LARGEST_PERSONAL_BYTES} bytes, this one has "
                f"{len(row.payload)}",
                "The method trains more than cores; private ones are for small states.",
            )
        values = (
            *(self._clock(), row.base, row.frame, row.layout, row.method, row.release, row.state),
            *(int(row.serves), json.dumps(dict(row.judged), allow_nan=False)),
            *(row.digest, row.payload),
        )
        with self._database.write() as connection:
            _clear(connection)
            connection.execute(f"INSERT INTO personal VALUES (1{', ?' * len(values)})", values)
            connection.executemany(
                "INSERT INTO personal_people VALUES (1, ?)", [(one,) for one in sorted(row.people)]
            )

    def judge(self, digest: str, serves: bool, judged: Mapping[str, Any]) -> bool:
        """Note what was found of the core with a digest; tells whether it is still kept."""
        text = json.dumps(dict(judged), allow_nan=False)
        with self._database.write() as connection:
            query = "UPDATE personal SET serves = ?, judged = ? WHERE digest = ?"
            return bool(connection.execute(query, (int(serves), text, digest)).rowcount)

    def get(self) -> PersonalRow | None:
        """Return the core; None when there is none.

        Raises:
            StorageError: ``personal-damaged`` when its bytes are not those of its digest.
        """
        columns = "base, frame, layout, method, release, state, payload, serves, judged, made_s"
        with self._database.read() as connection:
            row = connection.execute(f"SELECT {columns}, digest FROM personal").fetchone()
            people = connection.execute("SELECT person FROM personal_people").fetchall()
        if row is None:
            return None
        found = PersonalRow(
            base=str(row[0]),
            frame=str(row[1]),
            layout=str(row[2]),
            method=str(row[3]),
            release=int(row[4]),
            state=str(row[5]),
            payload=bytes(row[6]),
            people=frozenset(person for (person,) in people),
            serves=bool(row[7]),
            judged=json.loads(row[8]),
            made_s=float(row[9]),
        )
        if found.digest != row[10]:
            raise StorageError(
                "personal-damaged",
                f"the private core has digest {found.digest[:12]}…, {str(row[10])[:12]}… was kept",
                "It is dropped, and learned anew after the next release.",
            )
        return found

    def people(self) -> frozenset[str]:
        """Return whose windows the core or a training of it was shaped by."""
        query = (
            "SELECT person FROM personal_people UNION SELECT person FROM personal_checkpoint_people"
        )
        with self._database.read() as connection:
            return frozenset(person for (person,) in connection.execute(query).fetchall())

    def drop(self) -> bool:
        """Delete the core and a training of it under way; tells whether there was a core."""
        with self._database.write() as connection:
            connection.execute("DELETE FROM personal_checkpoints")
            connection.execute(
                "INSERT INTO state VALUES (?, '1')"
                " ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1",
                (DROPS,),
            )
            return _clear(connection)


def _clear(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("DELETE FROM personal").rowcount)
