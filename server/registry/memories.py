"""What rules remember: moments, kept in the transaction of the release that they led to.

So a crash can neither lose them nor apply them twice, and whoever goes on from a release, after a
rollback too, goes on with the moments that belong to it.
"""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from fleet.errors import StorageError
from fleet.federate.rule import RuleSpec
from server.registry import standing_tables, tables
from server.registry.packing import packed_arrays, unpacked_memory
from server.registry.records import ReleaseRow
from server.rules.memory import NOTHING, Memory

__all__ = ["insert_memory", "memory_of"]


def insert_memory(connection: Connection, number: int, memory: Memory) -> None:
    """Keep what a rule remembers beside its release; part of the caller's transaction."""
    row = {
        "release": number,
        "rule": memory.rule,
        "steps": memory.steps,
        "digest": memory.digest,
        "moments": packed_arrays(memory.arrays),
    }
    connection.execute(insert(standing_tables.memories).values(**row))


def memory_of(connection: Connection, release: ReleaseRow, rule: RuleSpec) -> Memory:
    """Return what a rule remembered when it made a release; nothing where it did not make it.

    Raises:
        StorageError: ``memory-damaged`` when that is gone, or is not what the release says.
    """
    made_by = release.provenance.get("rule")
    own = isinstance(made_by, dict) and rule.record.items() <= made_by.items()
    if not rule.remembers or not own:
        return NOTHING
    kept, rounds = standing_tables.memories, tables.rounds.c
    row = connection.execute(select(kept).where(kept.c.release == release.number)).one_or_none()
    if row is None:
        # One that came from elsewhere brought none; one of our rounds never came without.
        ours = select(rounds.round).where(rounds.release == release.number)
        if connection.execute(ours).first() is None:
            return NOTHING
        raise _damaged(release.number, "is gone")
    memory = unpacked_memory(row.rule, row.steps, bytes(row.moments))
    if memory is None:
        raise _damaged(release.number, "cannot be read")
    told = made_by.get("memory") if isinstance(made_by, dict) else None
    if memory.digest != row.digest or memory.digest != told or memory.rule != rule.text:
        raise _damaged(
            release.number, f"has {memory.digest[:12]}…, the release says {str(told)[:12]}…"
        )
    return memory


def _damaged(number: int, why: str) -> StorageError:
    return StorageError(
        "memory-damaged",
        f"what the rule remembers of release {number} {why}",
        "Restore the last backup beside this registry and compare: fleet server restore.",
    )
