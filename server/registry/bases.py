"""Bases: the immutable bundles that releases are relative to."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, insert, select

from fleet.errors import InputError
from server.registry import tables
from server.registry.ledger import Ledger, Outcome
from server.registry.records import BaseRow, Deed
from server.registry.rows import deed, done

__all__ = ["LARGEST_BASE_BYTES", "Bases", "bases_of", "no_base"]

LARGEST_BASE_BYTES = 256 << 20
"""A larger base is kept as a file beside the registry."""


class Bases:
    """The bases of a registry.

    Args:
        ledger: Where they are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def install(
        self, digest: str, place: bytes | Path, *, actor: str, key: str | None = None
    ) -> BaseRow:
        """Keep a base's bundle, or the path to it; changes nothing when the base is there.

        Args:
            digest: Digest of the base; the caller has read and checked the bundle.
            place: The bundle's bytes, or the file that holds them.
            actor: Who.
            key: Idempotency key.

        Raises:
            InputError: ``base-too-large`` or ``no-such-file``.
        """
        content = place if isinstance(place, bytes) else None
        size = len(place) if isinstance(place, bytes) else _size_of(place)
        if content is not None and size > LARGEST_BASE_BYTES:
            raise InputError(
                "base-too-large",
                f"the registry keeps bases of at most {LARGEST_BASE_BYTES} bytes, not {size}",
                "Keep the base in a file and install its path.",
            )

        def work(connection: Connection) -> Outcome[BaseRow]:
            if found := bases_of(connection, digest):
                return Outcome(found[0], digest, changed=False)
            row = {
                "digest": digest,
                "size": size,
                "path": None if isinstance(place, bytes) else str(place.absolute()),
                "content": content,
                **done("installed", self._ledger.clock(), actor),
            }
            connection.execute(insert(tables.bases).values(**row))
            return Outcome(bases_of(connection, digest)[0], digest)

        asked = {"base": digest, "size": size}
        return self._ledger.change("base.install", asked, work, BaseRow, actor=actor, key=key)

    def all(self) -> tuple[BaseRow, ...]:
        """Return all bases, in the order in which they were installed."""
        with self._ledger.database.read() as connection:
            return bases_of(connection)

    def content(self, digest: str) -> bytes | Path:
        """Return a base's bundle: its bytes, or the file that holds them.

        Raises:
            InputError: ``no-such-base``.
        """
        kept = tables.bases.c
        with self._ledger.database.read() as connection:
            row = connection.execute(
                select(kept.content, kept.path).where(kept.digest == digest)
            ).one_or_none()
        if row is None:
            raise no_base(digest)
        return Path(row.path) if row.content is None else bytes(row.content)


def bases_of(connection: Connection, digest: str | None = None) -> tuple[BaseRow, ...]:
    """Return one base or all, in the order in which they were installed."""
    kept = tables.bases.c
    columns = [column for column in kept if column.name != "content"]
    query = select(*columns).order_by(kept.installed_at_s, kept.digest)
    if digest is not None:
        query = query.where(kept.digest == digest)
    return tuple(
        BaseRow(
            digest=row.digest,
            size=row.size,
            path=row.path,
            installed=deed(row, "installed") or Deed(at_s=0.0, by=""),
        )
        for row in connection.execute(query)
    )


def no_base(digest: str) -> InputError:
    """Return the error for a base that is not installed."""
    return InputError(
        "no-such-base",
        f"the base {digest[:12]}… is not installed",
        "Install it: fleet base install FILE",
    )


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError("no-such-file", f"{path} cannot be read ({error.strerror})") from error
