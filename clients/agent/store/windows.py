"""Windows: raw signals with time, person and the side of the split they arrived on."""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.agent.store.database import Database
from clients.agent.store.eviction import evict_windows, unpin_excess
from clients.agent.store.labels import EDGE_S
from clients.agent.store.records import Added, Caps, Loaded, Split, SplitRule, WindowBatch
from fleet.errors import InputError

__all__ = ["COLUMNS", "VOUCHED", "WindowTable", "checksum", "loaded_of"]

DTYPES: dict[str, np.dtype[Any]] = {"<f2": np.dtype("<f2"), "<f4": np.dtype("<f4")}
VOUCHED = ("person", "start_s", "end_s", "split", "dtype", "channels", "samples", "signal")
"""Columns that a window's checksum vouches for: all that is said once and never changed."""
COLUMNS = f"id, label, crc, {', '.join(VOUCHED)}"
"""What :func:`loaded_of` takes."""
_INSERT = (
    "INSERT OR IGNORE INTO windows (person, source, start_s, end_s, split, label, dtype, channels,"
    " samples, size, crc, digest, signal) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class WindowTable:
    """The windows of a store.

    Args:
        database: Where they are.
        caps: How many bytes they may hold.
        clock: Seconds since the epoch.
    """

    def __init__(self, database: Database, caps: Caps, clock: Callable[[], float]) -> None:
        self._database = database
        self._caps = caps
        self._clock = clock

    def add(self, person: str, source: str, batch: WindowBatch, rule: SplitRule) -> Added:
        """Add windows; one that the person already has (same start, same bytes) changes nothing.

        Range labels given before count for them, and older windows make room for them.

        Args:
            person: Who wore the sensor.
            source: Where they come from, for people to read.
            batch: In time order.
            rule: Which side of the split they fall on.

        Raises:
            InputError: ``bad-windows`` for another dtype or shape, or not finite.
            StorageError: Nothing was added.
        """
        _check(batch)
        with self._database.write() as connection:
            labels = _said_before(connection, person, batch)
            arrived = first = _arrived(connection, person)
            for number in range(len(batch)):
                side = rule.side(arrived, batch.reach)
                row = _row(person, source, side, labels[number], batch, number)
                arrived += connection.execute(_INSERT, row).rowcount
            if arrived != first:
                connection.execute(
                    "INSERT INTO people VALUES (?, ?)"
                    " ON CONFLICT (person) DO UPDATE SET arrived = excluded.arrived",
                    (person, arrived),
                )
            evicted = evict_windows(connection, self._caps)
        return Added(arrived - first, len(batch) - (arrived - first), evicted)

    def load(
        self,
        shape: tuple[int, int],
        *,
        split: Split | None = None,
        labelled: bool | None = None,
        pinned: bool | None = None,
        person: str | None = None,
        newest: int | None = None,
    ) -> Loaded:
        """Return windows in the order of arrival.

        Args:
            shape: ``(channels, samples)``; windows of another base are left out.
            split: Only this side.
            labelled: Only with, or only without, a label.
            pinned: Only with, or only without, a pin.
            person: Only this person's.
            newest: At most so many, the last to arrive.
        """
        where, values = ["channels = ?", "samples = ?"], list[object](shape)
        for column, wanted in (("split", split), ("person", person)):
            if wanted is not None:
                where.append(f"{column} = ?")
                values.append(wanted)
        for column, asked in (("label", labelled), ("pinned_s", pinned)):
            if asked is not None:
                where.append(f"{column} IS {'NOT ' if asked else ''}NULL")
        limit = -1 if newest is None else newest
        query = (
            f"SELECT {COLUMNS} FROM windows WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?"
        )
        with self._database.read() as connection:
            rows = connection.execute(query, (*values, limit)).fetchall()
        return loaded_of(rows[::-1], shape)

    def pin(self, ids: Sequence[int]) -> int:
        """Keep windows for replay; beyond the cap the largest class's oldest pins come off.

        Returns:
            How many windows lost a pin.
        """
        now_s = self._clock()
        with self._database.write() as connection:
            connection.executemany(
                "UPDATE windows SET pinned_s = ? WHERE id = ?", [(now_s, int(one)) for one in ids]
            )
            unpinned = unpin_excess(connection, self._caps.replay_bytes)
            evict_windows(connection, self._caps)
        return unpinned

    def unpin(self, ids: Sequence[int]) -> None:
        """Let windows age like all others again."""
        with self._database.write() as connection:
            connection.executemany(
                "UPDATE windows SET pinned_s = NULL WHERE id = ?", [(int(one),) for one in ids]
            )
            evict_windows(connection, self._caps)

    def counts(self) -> dict[tuple[str, str | None], int]:
        """Return how many windows there are by ``(split, label)``; None is without a label."""
        query = "SELECT split, label, count(*) FROM windows GROUP BY label, split"
        with self._database.read() as connection:
            rows = connection.execute(query).fetchall()
        return {(split, label): int(count) for split, label, count in rows}

    def unknown(self, people: Iterable[str]) -> list[str]:
        """Return those of ``people`` that the store knows nothing of, e.g. any more."""
        with self._database.read() as connection:
            known = {row[0] for row in connection.execute("SELECT person FROM people")}
        return sorted(set(people) - known)

    def bytes(self) -> int:
        """Return the bytes that all signals take."""
        return self._database.number("SELECT sum(size) FROM windows")


def _check(batch: WindowBatch) -> None:
    signals = batch.signals
    if signals.ndim != 3 or signals.dtype.newbyteorder("<").str not in DTYPES:
        raise InputError(
            "bad-windows",
            "signals must be float16 or float32 (n, channels, samples),"
            f" not {signals.dtype} {signals.shape}",
        )
    if not len(signals) == len(batch.start_s) == len(batch.end_s):
        raise InputError("bad-windows", "signals, start_s and end_s must have one row per window")
    times = (batch.start_s, batch.end_s)
    if not (np.isfinite(signals).all() and all(np.isfinite(one).all() for one in times)):
        raise InputError("bad-windows", "signals and times must be finite")


def _row(
    person: str, source: str, side: Split, label: str | None, batch: WindowBatch, number: int
) -> tuple[object, ...]:
    """Return the columns that :data:`_INSERT` names."""
    signal = np.ascontiguousarray(batch.signals[number])
    little = signal.astype(signal.dtype.newbyteorder("<"), copy=False)
    content, dtype = little.tobytes(), little.dtype.str
    start_s, end_s = float(batch.start_s[number]), float(batch.end_s[number])
    # The start is part of it: a still sensor gives the same bytes again and again.
    digest = hashlib.sha256(struct.pack("<d", start_s) + dtype.encode() + content).digest()[:16]
    crc = checksum(person, start_s, end_s, side, dtype, *little.shape, content)
    about = (person, source, start_s, end_s, side, label, dtype, *little.shape)
    return (*about, len(content), crc, digest, content)


def checksum(*vouched: object) -> int:
    """Return the CRC-32 of a window's columns :data:`VOUCHED`; none if their types are wrong."""
    *about, content = vouched
    if not isinstance(content, bytes):
        return -1
    return zlib.crc32(content, zlib.crc32(repr(about).encode(errors="replace")))


def _arrived(connection: sqlite3.Connection, person: str) -> int:
    row = connection.execute("SELECT arrived FROM people WHERE person = ?", (person,)).fetchone()
    return int(row[0]) if row else 0


def _said_before(
    connection: sqlite3.Connection, person: str, batch: WindowBatch
) -> list[str | None]:
    """Return the label that earlier range statements give to each window; the last one wins."""
    labels: list[str | None] = [None] * len(batch)
    if not len(batch):
        return labels
    rows = connection.execute(
        "SELECT from_s, to_s, label FROM statements"
        " WHERE person = ? AND from_s <= ? AND to_s >= ? ORDER BY id",
        (person, float(batch.start_s.max()) + EDGE_S, float(batch.end_s.min()) - EDGE_S),
    )
    for from_s, to_s, label in rows:
        inside = (batch.start_s >= from_s - EDGE_S) & (batch.end_s <= to_s + EDGE_S)
        for number in np.flatnonzero(inside):
            labels[number] = label
    return labels


def loaded_of(rows: list[tuple[Any, ...]], shape: tuple[int, int]) -> Loaded:
    """Make records of rows of :data:`COLUMNS`; windows that are not whole are left out."""
    whole = [row for row in rows if checksum(*row[3:]) == row[2]]
    x = np.empty((len(whole), *shape), dtype=np.float32)
    for place, row in enumerate(whole):
        x[place] = np.frombuffer(row[10], DTYPES[row[7]]).reshape(shape)
    return Loaded(
        ids=_column(whole, 0).astype(np.int64),
        x=x,
        labels=tuple(row[1] for row in whole),
        people=tuple(row[3] for row in whole),
        start_s=_column(whole, 4),
        damaged=len(rows) - len(whole),
    )


def _column(rows: list[tuple[Any, ...]], place: int) -> NDArray[np.float64]:
    return np.array([row[place] for row in rows], dtype=np.float64)
