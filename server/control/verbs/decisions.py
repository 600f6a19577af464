"""Verbs about the policy, the audit and the registry itself."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

from fleet.errors import InputError, UnavailableError
from server.control import requests as r
from server.control.backups.writing import write_archive
from server.control.seam import Answer
from server.control.verbs.bases import check_installed
from server.control.verbs.fleet import Fleet
from server.control.verbs.shown import shown_audit, utc
from server.control.verbs.touched import rounds_of, touched
from server.registry import Head
from server.registry.policies import PolicyRow
from server.registry.records import DeviceState
from server.service.folder import ServerFolder
from server.standing.policy import FleetPolicy

__all__ = ["audit", "audit_verified", "backup", "policy", "set_policy"]


def policy(fleet: Fleet, actor: str, asked: r.PolicyShow) -> Answer:
    """Show the policy that holds.

    Raises:
        InputError: ``no-policy``.
    """
    found = fleet.registry.policy.newest()
    if found is None:
        fleet.registry.policy.get()  # raises, in the registry's own words
    assert found is not None
    return Answer({"policy": _shown(found)})


def set_policy(fleet: Fleet, actor: str, asked: r.PolicySet) -> Answer:
    """Change keys of the policy; it holds from the next round on.

    Raises:
        InputError: ``bad-policy``, listing every problem at once, or ``base-not-installed``.
    """
    before = fleet.registry.policy.newest()
    values = {} if before is None else before.policy.model_dump(mode="json")
    changes = _parsed(asked.policy)
    after = FleetPolicy.parse({**values, **changes})
    check_installed(fleet, after.base)
    told = after.model_dump(mode="json")
    changed = {
        name: {"from": values.get(name), "to": told[name]}
        for name in sorted(told)
        if values.get(name) != told[name]
    }
    devices = fleet.registry.devices.all(state=DeviceState.enrolled)
    names = [each.name for each in devices] if changed else []
    reach = touched(names, (), [])
    data: dict[str, Any] = {"dry_run": asked.dry_run, "touches": reach, "changed": changed}
    data["open_rounds_untouched"] = rounds_of(fleet)
    if not asked.dry_run:
        row = fleet.registry.policy.set(after, why=asked.why, actor=actor, key=asked.key)
        data["policy"] = _shown(row)
    return Answer(data)


def audit(fleet: Fleet, actor: str, asked: r.AuditList) -> Answer:
    """List the newest rows of the audit, in order."""
    rows = fleet.registry.audit.rows(
        subject=asked.subject or None, before=asked.before, newest=asked.newest
    )
    return Answer({"rows": shown_audit(rows)})


def audit_verified(fleet: Fleet, actor: str, asked: r.AuditVerify) -> Answer:
    """Follow the audit's whole chain; write down what this tells.

    Raises:
        InputError: ``head-incomplete`` for a number without its hash.
        StorageError: ``audit-broken``.
    """
    if bool(asked.seq) != bool(asked.hash):
        raise InputError(
            "head-incomplete",
            "the end of an audit is the number of a row and its hash; one of them is missing",
            "Give both: --seq N --hash HASH",
        )
    head = fleet.registry.audit.verify(Head(asked.seq, asked.hash) if asked.seq else None)
    given = asked.seq or None
    return Answer({"sound": True, "seq": head.seq, "hash": head.hash, "written_down": given})


def backup(fleet: Fleet, actor: str, asked: r.RegistryBackup) -> Answer:
    """Back the server up to a file in its folder, without any private key.

    Raises:
        UnavailableError: ``no-backups`` where none may be taken, ``backup-by-pg-dump``.
        InputError: ``backup-exists``; a backup is never replaced.
        StorageError: See :func:`server.control.backups.writing.write_archive`.
    """
    if fleet.backups is None:
        raise UnavailableError("no-backups", "this server takes no backups by request", "")
    path, now = fleet.backups / asked.name, datetime.fromtimestamp(fleet.clock(), timezone.utc)
    made = write_archive(fleet.registry, ServerFolder(fleet.backups.parent), path, now)
    data = {"file": str(path), "seq": made.seq, "hash": made.hash, "files": sorted(made.files)}
    return Answer(data)


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise _no_policy(f"it is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise _no_policy(f"it is a JSON {type(found).__name__}, not an object")
    return found


def _no_policy(why: str) -> InputError:
    return InputError("bad-policy", f"a policy is a JSON object: {why}", "See: fleet policy show")


def _shown(row: PolicyRow) -> dict[str, Any]:
    return {
        "version": row.version,
        "set": {"at": utc(row.set.at_s), "by": row.set.by, "why": row.set.why},
        "values": row.policy.model_dump(mode="json"),
    }
