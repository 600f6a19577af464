"""The keys that ever signed this fleet's releases: their public halves, each a row of the audit.

So a release stays verifiable after its key was changed, and a key that somebody adds later shows
in the chain.
"""

from __future__ import annotations

import json

from sqlalchemy import Connection, select

from fleet.federate.signing import key_id
from server.registry import tables
from server.registry.ledger import Ledger, Outcome

__all__ = ["Signers"]

VERB = "release.key"


class Signers:
    """The keys of a registry.

    Args:
        ledger: Where they are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def add(self, public: bytes, *, actor: str) -> str:
        """Keep the public half (PEM) of the key that signs from now on; return its id.

        Nothing changes when it is known.

        Raises:
            InputError: ``release-key``.
        """
        name = key_id(public)

        def work(connection: Connection) -> Outcome[str]:
            return Outcome(name, f"release-key {name}", changed=name not in _known(connection))

        asked = {"key": name, "public": public.decode()}
        return self._ledger.change(VERB, asked, work, str, actor=actor)

    def all(self) -> dict[str, bytes]:
        """Return all public keys (PEM) by their ids, the oldest first."""
        with self._ledger.database.read() as connection:
            return _known(connection)


def _known(connection: Connection) -> dict[str, bytes]:
    kept = tables.audit.c
    query = select(kept.detail).where(kept.verb == VERB).order_by(kept.seq)
    rows = [json.loads(detail) for detail in connection.execute(query).scalars()]
    return {str(row["key"]): str(row["public"]).encode() for row in rows}
