"""Making room for windows: oldest first, with balance between classes.

Unlabelled windows have their own cap and are the first to go. Labelled ones give way class by
class: the class (on one side of the split) that holds most loses its oldest window, so that every
class keeps a fair share however long ago it was seen. Pinned windows stay; pins have a cap of their
own, and what loses its pin is an ordinary window again.
"""

from __future__ import annotations

import sqlite3

from clients.agent.store.records import Caps

__all__ = ["evict_windows", "unpin_excess"]

STEP = 64  # rows looked at in one go

_GROUPS = (
    "SELECT label, split, sum(size) FROM windows WHERE pinned_s IS {} NULL GROUP BY label, split"
)
Group = tuple["str | None", str]


def evict_windows(connection: sqlite3.Connection, caps: Caps) -> int:
    """Delete windows until the caps hold; part of the caller's transaction.

    Returns:
        How many were deleted.
    """
    groups = _sizes(connection, pinned=False)
    total = sum(groups.values()) + sum(_sizes(connection, pinned=True).values())
    unlabelled = sum(size for (label, _), size in groups.items() if label is None)
    evicted = 0
    excess = max(unlabelled - caps.unlabelled_bytes, min(total - caps.windows_bytes, unlabelled))
    if excess > 0:
        rows = _oldest(connection, "label IS NULL AND pinned_s IS NULL", (), excess)
        evicted += _delete(connection, rows)
        total -= sum(size for _, size in rows)
        groups = {group: size for group, size in groups.items() if group[0] is not None}
    while total > caps.windows_bytes and any(groups.values()):
        group = max(groups, key=lambda one: (groups[one], one[0] or "", one[1]))
        rows = _share(connection, groups, group, total - caps.windows_bytes)
        freed = sum(size for _, size in rows)
        evicted += _delete(connection, rows)
        groups[group] = groups[group] - freed if rows else 0
        total -= freed
    return evicted


def unpin_excess(connection: sqlite3.Connection, cap_bytes: int) -> int:
    """Take pins off until they hold at most ``cap_bytes``: the largest class's oldest pin first.

    Returns:
        How many windows lost their pin.
    """
    groups = _sizes(connection, pinned=True)
    total, unpinned = sum(groups.values()), 0
    while total > cap_bytes and any(groups.values()):
        label, split = max(groups, key=lambda one: (groups[one], one[0] or "", one[1]))
        row = connection.execute(
            "SELECT id, size FROM windows WHERE label IS ? AND split = ? AND pinned_s IS NOT NULL"
            " ORDER BY pinned_s, id LIMIT 1",
            (label, split),
        ).fetchone()
        connection.execute("UPDATE windows SET pinned_s = NULL WHERE id = ?", (row[0],))
        groups[label, split] -= row[1]
        total -= row[1]
        unpinned += 1
    return unpinned


def _sizes(connection: sqlite3.Connection, *, pinned: bool) -> dict[Group, int]:
    rows = connection.execute(_GROUPS.format("NOT" if pinned else ""))
    return {(label, split): int(size) for label, split, size in rows}


def _share(
    connection: sqlite3.Connection, groups: dict[Group, int], group: Group, excess: int
) -> list[tuple[int, int]]:
    """Return the oldest rows that the largest group loses before another becomes the largest."""
    others = [size for one, size in groups.items() if one != group]
    lead = groups[group] - max(others, default=0)
    where = "label IS ? AND split = ? AND pinned_s IS NULL"
    return _oldest(connection, where, group, min(excess, max(lead, 1)))[:STEP]


def _oldest(
    connection: sqlite3.Connection, where: str, values: tuple[object, ...], enough: int
) -> list[tuple[int, int]]:
    """Return ``(id, size)`` of the oldest rows that hold ``enough`` bytes together, or of all."""
    rows: list[tuple[int, int]] = []
    query = f"SELECT id, size FROM windows WHERE {where} ORDER BY id"
    for row in connection.execute(query, values):
        if enough <= 0:
            break
        rows.append((int(row[0]), int(row[1])))
        enough -= rows[-1][1]
    return rows


def _delete(connection: sqlite3.Connection, rows: list[tuple[int, int]]) -> int:
    connection.executemany("DELETE FROM windows WHERE id = ?", [(row,) for row, _ in rows])
    return len(rows)
