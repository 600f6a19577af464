"""Verbs about operators: whose certificates are good, and taking them back."""

from __future__ import annotations

from typing import Any

from server.control import requests as r
from server.control.operators import Certificate, Operators
from server.control.seam import Answer
from server.control.verbs.fleet import Fleet
from server.control.verbs.shown import utc
from server.control.verbs.touched import touched

__all__ = ["listed", "revoke"]

SERIAL_SHOWN = 8
"""Digits of a serial number in a sentence."""


def listed(fleet: Fleet, actor: str, asked: r.OperatorList) -> Answer:
    """List all certificates, by name and age."""
    found = Operators(fleet.registry, fleet.clock).all()
    return Answer({"operators": [_shown(fleet, each) for each in found]})


def revoke(fleet: Fleet, actor: str, asked: r.OperatorRevoke) -> Answer:
    """Take certificates back; refused from the next call on.

    Raises:
        InputError: ``no-such-operator``, or ``last-admin``.
    """
    operators = Operators(fleet.registry, fleet.clock)
    if asked.dry_run:
        found = operators.chosen(asked.operator, last_admin=asked.last_admin)
    else:
        found = operators.revoke(
            asked.operator,
            last_admin=asked.last_admin,
            why=asked.why,
            actor=actor,
            key=asked.key,
        )
    words = [f"{each.name} ({each.role.value}) {each.serial[:SERIAL_SHOWN]}…" for each in found]
    shown = [_shown(fleet, each) for each in found]
    reach = touched(certificates=words)
    return Answer({"dry_run": asked.dry_run, "touches": reach, "operators": shown})


def _shown(fleet: Fleet, found: Certificate) -> dict[str, Any]:
    revoked = found.revoked
    return {
        "name": found.name,
        "role": found.role.value,
        "state": found.state(fleet.clock()).value,
        "issued": {"at": utc(found.issued.at_s), "by": found.issued.by},
        "expires_at": utc(found.expires_at_s),
        "revoked": revoked and {"at": utc(revoked.at_s), "by": revoked.by, "why": revoked.why},
        "serial": found.serial,
    }
