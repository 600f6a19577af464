"""Counts of what rounds were answered, without reading the answers themselves."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Select, Table, func, select

from server.registry import Registry, tables
from server.registry.records import RoundRow

__all__ = ["answers_of", "weight_in"]


def answers_of(registry: Registry, rows: Iterable[RoundRow]) -> dict[tuple[int, int], list[int]]:
    """Return how many updates were accepted and refused, by round and attempt."""
    numbers = sorted({row.round for row in rows})
    if not numbers:
        return {}
    found: dict[tuple[int, int], list[int]] = {}
    with registry.database.read() as connection:
        for place, table in enumerate((tables.updates, tables.refusals)):
            for number, attempt, count in connection.execute(_counting(table, numbers)):
                found.setdefault((number, attempt), [0, 0])[place] = count
    return found


def _counting(table: Table, numbers: list[int]) -> Select[int, int, int]:
    kept = table.c
    within = kept.round.between(numbers[0], numbers[-1])
    own = [~kept.earlier] if "earlier" in kept else []  # answers to a plan before are not of it
    chosen = select(kept.round, kept.attempt, func.count()).where(within, *own)
    return chosen.group_by(kept.round, kept.attempt)


def weight_in(registry: Registry, row: RoundRow, device: str) -> int | None:
    """Return the weight of a device's accepted update in a round, windows; None without one."""
    kept = tables.updates.c
    query = select(kept.weight).where(
        kept.round == row.round, kept.attempt == row.attempt, kept.device == device
    )
    with registry.database.read() as connection:
        found = connection.execute(query).scalar()
    return None if found is None else int(found)
