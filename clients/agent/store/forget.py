"""Forgetting a person: every row of theirs, the bytes behind it, and damaged copies too."""

from __future__ import annotations

from clients.agent.store.database import Database
from clients.agent.store.records import Forgotten
from clients.agent.store.repair import quarantined
from fleet.errors import StorageError

__all__ = ["FORGETS", "LEARNED", "forget_person"]

FORGETS = "forgets"
"""Key of the state: how often somebody was forgotten; a name may come again, this number not."""
LEARNED = "learned."
"""Keys of the state that begin so hold what was made of people's windows, nobody knows whose: it is
forgotten with anybody."""

# In this order: statements about a window leave with it, so they are counted before.
_DELETIONS = (
    ("labels", "DELETE FROM statements WHERE person = ?"),
    ("windows", "DELETE FROM windows WHERE person = ?"),
    ("journal", "DELETE FROM journal WHERE id IN (SELECT entry FROM journal_people WHERE {})"),
    (
        "checkpoints",
        "DELETE FROM checkpoints WHERE plan IN (SELECT plan FROM checkpoint_people WHERE {})",
    ),
    (
        "residuals",
        "DELETE FROM residuals WHERE key IN (SELECT key FROM residual_people WHERE {})",
    ),
    (
        "fisher information",
        "DELETE FROM fishers WHERE key IN (SELECT key FROM fisher_people WHERE {})",
    ),
    (
        "personal cores",
        "DELETE FROM personal WHERE id IN (SELECT core FROM personal_people WHERE {})",
    ),
    (
        "personal checkpoints",
        "DELETE FROM personal_checkpoints WHERE plan IN"
        " (SELECT plan FROM personal_checkpoint_people WHERE {})",
    ),
    ("updates", "DELETE FROM outbox WHERE delivered_s IS NULL AND {}"),
    ("sources", "DELETE FROM positions WHERE person = ?"),
    ("people", "DELETE FROM people WHERE person = ?"),
)
_OF_OUTBOX = "plan IN (SELECT plan FROM outbox_people WHERE person = ?)"


def forget_person(database: Database, person: str) -> Forgotten:
    """Delete what the store holds of a person.

    Updates that wait in the outbox and were shaped by the person's windows are deleted; delivered
    ones lose their payload and are reported, since only the operator can act on them. Freed pages
    are overwritten and given back; damaged files that were set aside are deleted, because whom they
    hold cannot be told.

    Raises:
        StorageError: Nothing was deleted, or damaged copies could not be.
    """
    with database.write() as connection:
        held = connection.execute(
            f"SELECT plan, round FROM outbox WHERE delivered_s IS NOT NULL AND {_OF_OUTBOX}"
            " ORDER BY round, plan",
            (person,),
        ).fetchall()
        pinned = "SELECT count(*) FROM windows WHERE person = ? AND pinned_s IS NOT NULL"
        deleted = {"replay": database.number(pinned, (person,))}
        for kind, statement in _DELETIONS:
            query = statement.format(_OF_OUTBOX if kind == "updates" else "person = ?")
            deleted[kind] = connection.execute(query, (person,)).rowcount
        connection.execute(
            f"UPDATE outbox SET payload = NULL, size = 0 WHERE {_OF_OUTBOX}", (person,)
        )
        connection.execute("DELETE FROM outbox_people WHERE person = ?", (person,))
        connection.execute("DELETE FROM journal_people WHERE person = ?", (person,))
        deleted["learned"] = 0
        if deleted["people"]:
            deleted["learned"] = connection.execute(
                "DELETE FROM state WHERE substr(key, 1, ?) = ?", (len(LEARNED), LEARNED)
            ).rowcount
            connection.execute(
                "INSERT INTO state VALUES (?, '1')"
                " ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1",
                (FORGETS,),
            )
    deleted["damaged copies"] = _delete_copies(database)
    pages = database.number("PRAGMA page_count")
    cleared = database.tidy(pages)
    return Forgotten(person, deleted, tuple((plan, int(number)) for plan, number in held), cleared)


def _delete_copies(database: Database) -> int:
    copies = quarantined(database.path)
    for copy in copies:
        try:
            copy.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                "copy-not-deleted",
                f"{copy} may hold the person's windows and could not be deleted: {error.strerror}",
                "Delete it by hand.",
            ) from error
    return len(copies)
