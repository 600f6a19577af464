"""The one table of verbs: who may ask for each, and what answers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.control.requests import Request
from server.control.roles import Role
from server.control.seam import Answer
from server.control.verbs import (
    bases,
    decisions,
    devices,
    operators,
    rebasing,
    releases,
    rounds,
)
from server.control.verbs.fleet import Fleet

__all__ = ["LIMIT_S", "LONG_S", "VERBS", "WATCH_ROLE", "Verb", "verb_of"]


LIMIT_S = 30.0
"""Seconds that a request may take; callers wait as long."""
LONG_S = 600.0
"""Of one that reads everything there is."""


@dataclass(frozen=True)
class Verb:
    """One thing that can be asked.

    Args:
        role: Who may.
        run: Answers a request of an actor.
        limit_s: How long it may take where a caller sets no deadline, seconds.
    """

    role: Role
    run: Callable[[Fleet, str, Any], Answer]
    limit_s: float = LIMIT_S


WATCH_ROLE = Role.viewer
VERBS: dict[str, Verb] = {
    "AuditList": Verb(Role.viewer, decisions.audit),
    "AuditVerify": Verb(Role.viewer, decisions.audit_verified, LONG_S),
    "BaseInstall": Verb(Role.admin, bases.install),
    "BaseList": Verb(Role.viewer, bases.listed, LONG_S),
    "DeviceEnroll": Verb(Role.admin, devices.enroll),
    "DeviceList": Verb(Role.viewer, devices.listed),
    "DeviceQuarantine": Verb(Role.operator, devices.quarantine),
    "DeviceReadmit": Verb(Role.operator, devices.readmit),
    "DeviceRevoke": Verb(Role.admin, devices.revoke),
    "DeviceShow": Verb(Role.viewer, devices.show),
    "DeviceTag": Verb(Role.operator, devices.tag),
    "DeviceWhy": Verb(Role.viewer, devices.why),
    "OperatorList": Verb(Role.viewer, operators.listed),
    "OperatorRevoke": Verb(Role.admin, operators.revoke),
    "PolicySet": Verb(Role.operator, decisions.set_policy),
    "PolicyShow": Verb(Role.viewer, decisions.policy),
    "RegistryBackup": Verb(Role.admin, decisions.backup, LONG_S),
    "ReleaseDiff": Verb(Role.viewer, releases.diff),
    "ReleaseExport": Verb(Role.viewer, releases.export),
    "ReleaseList": Verb(Role.viewer, releases.listed),
    "ReleasePin": Verb(Role.operator, releases.pin),
    "ReleasePromote": Verb(Role.operator, releases.promote),
    # It reads two bases and a release.
    "ReleaseRebase": Verb(Role.operator, rebasing.rebase, LONG_S),
    "ReleaseRollback": Verb(Role.operator, releases.rollback),
    "ReleaseShow": Verb(Role.viewer, releases.show),
    "ReleaseVerify": Verb(Role.viewer, releases.verified, LONG_S),
    "ReleaseWithdraw": Verb(Role.admin, releases.withdraw),
    "RoundAbort": Verb(Role.operator, rounds.abort),
    "RoundList": Verb(Role.viewer, rounds.listed),
    # It writes nothing, but it costs the server what a round costs.
    "RoundReplay": Verb(Role.operator, rounds.replay, LONG_S),
    "RoundShow": Verb(Role.viewer, rounds.show),
    "RoundStart": Verb(Role.operator, rounds.start),
}


def verb_of(request: Request) -> Verb:
    """Return what answers a request."""
    return VERBS[type(request).__name__]
