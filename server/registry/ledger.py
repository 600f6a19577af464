"""How the registry is changed: the change, its audit row and its idempotency key are one.

Act(actor, key) ──► change(verb, asked, work)
    the key was used: its first result again, nothing changes
    else, in one transaction: work ─► audit row ─► key
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter
from sqlalchemy import Connection, delete, insert, select

from fleet.adapt.digest import canonical_json, digest_json
from fleet.errors import InputError
from server.registry import tables
from server.registry.chain import append
from server.registry.database import Database

__all__ = ["KEY_LIFETIME_S", "LARGEST_TEXT", "Ledger", "Outcome", "canonical", "checked_text"]

KEY_LIFETIME_S = 24 * 3600.0
"""How long an idempotency key is remembered; a client gives up long before."""
LARGEST_NAME = 128
LARGEST_TEXT = 500
"""Characters of a reason; longer ones are cut."""

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a change came to.

    Args:
        result: What the caller gets.
        subject: What was changed, for the audit.
        detail: What the audit says beside what was asked.
        changed: False when everything was so already: then there is no audit row.
    """

    result: T
    subject: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    changed: bool = True


class Ledger:
    """A database of which every change leaves a row in the audit.

    Args:
        database: Where.
        clock: Seconds since the epoch.

    Attributes:
        fence: Looked at first in the transaction of every change; it raises where this process
            may not write.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self.database = database
        self.clock = clock
        self.fence: Callable[[Connection], None] = lambda connection: None

    def write(self, work: Callable[[Connection], T]) -> T:
        """Change the registry in one transaction that leaves no row in the audit.

        Args:
            work: Reads and writes; may run again, see :meth:`Database.change`.

        Raises:
            StorageError: Nothing was kept.
        """

        def whole(connection: Connection) -> T:
            self.fence(connection)
            return work(connection)

        return self.database.change(whole)

    def change(
        self,
        verb: str,
        asked: Mapping[str, Any],
        work: Callable[[Connection], Outcome[T]],
        kind: Any,
        *,
        actor: str,
        key: str | None = None,
    ) -> T:
        """Change the registry in one transaction, with its audit row.

        Args:
            verb: What is done, e.g. ``device.enroll``.
            asked: What the caller asked for, JSON; a key answers for this alone.
            work: Reads and writes; may run again, see :meth:`Database.change`.
            kind: Type of the result, for keeping it as JSON.
            actor: Who asks.
            key: Idempotency key; the same one returns the first result and changes nothing.

        Raises:
            InputError: ``bad-name``, or ``key-reused`` for a key that came with another request.
            StorageError: Nothing was kept.
        """
        checked_text("actor", actor)
        if key is not None:
            checked_text("idempotency key", key)
        adapter: TypeAdapter[T] = TypeAdapter(kind)
        request = digest_json([actor, verb, dict(asked)])

        def whole(connection: Connection) -> T:
            now = self.clock()
            if key is not None and (first := _remembered(connection, key, request, now)):
                return adapter.validate_json(first)
            outcome = work(connection)
            if outcome.changed:
                detail = {**asked, **outcome.detail}
                append(connection, now, actor, verb, outcome.subject, detail)
            if key is not None:
                result = adapter.dump_json(outcome.result).decode()
                expires = now + KEY_LIFETIME_S
                row = {"key": key, "asked": request, "result": result, "expires_at_s": expires}
                connection.execute(insert(tables.requests).values(row))
            return outcome.result

        return self.write(whole)


def _remembered(connection: Connection, key: str, request: str, now: float) -> str | None:
    """Return the result of a key that was used for the same request."""
    kept = tables.requests
    connection.execute(delete(kept).where(kept.c.expires_at_s <= now))
    row = connection.execute(select(kept).where(kept.c.key == key)).one_or_none()
    if row is None:
        return None
    if row.asked != request:
        raise InputError(
            "key-reused",
            f"an idempotency key is for one request; {key!r} came with another one before",
            "Use a new key for every request, and the same one only to repeat it.",
        )
    return str(row.result)


def checked_text(what: str, text: str, largest: int = LARGEST_NAME) -> str:
    """Return a name that can be kept and shown.

    Raises:
        InputError: ``bad-name`` unless it has 1 to ``largest`` printable characters.
    """
    if not 1 <= len(text) <= largest or not text.isprintable() or text != text.strip():
        shown = text if len(text) <= largest else f"{text[:largest]}…"
        raise InputError(
            "bad-name", f"a {what} has 1 to {largest} printable characters, not {shown!r}"
        )
    return text


def canonical(content: Any) -> str:
    """Return JSON as the registry keeps it."""
    return canonical_json(content).decode()


def parsed(text: str | None) -> dict[str, Any]:
    """Read JSON that the registry kept."""
    return dict(json.loads(text)) if text else {}
