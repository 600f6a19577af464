"""Verbs about bases: what releases can be relative to."""

from __future__ import annotations

from typing import Any

from fleet.errors import FleetError, InputError
from server.control import requests as r
from server.control.seam import Answer
from server.control.verbs.fleet import Fleet
from server.control.verbs.shown import utc
from server.installed import base_in
from server.registry.records import BaseRow
from server.standing.line import trained_base

__all__ = ["check_installed", "install", "listed"]


def install(fleet: Fleet, actor: str, asked: r.BaseInstall) -> Answer:
    """Install a base, after its content was checked against its digest.

    Raises:
        StorageError: ``bundle-damaged`` or ``base-damaged``.
        MismatchError: ``bundle-format`` for a file that is no base.
    """
    base = base_in(asked.content)
    row = fleet.registry.bases.install(base.digest, asked.content, actor=actor, key=asked.key)
    # Of a fleet that serves a release the way to another base is a rebase.
    moves = fleet.registry.releases.current() is not None
    return Answer({"base": _shown(fleet, row), "moves": moves})


def listed(fleet: Fleet, actor: str, asked: r.BaseList) -> Answer:
    """List the bases, in the order in which they were installed."""
    return Answer({"bases": [_shown(fleet, row) for row in fleet.registry.bases.all()]})


def check_installed(fleet: Fleet, digest: str) -> None:
    """Refuse a base that no release can be relative to yet.

    Raises:
        InputError: ``base-not-installed``.
    """
    if digest not in {row.digest for row in fleet.registry.bases.all()}:
        raise InputError(
            "base-not-installed",
            f"the policy's base {digest} is not installed on this server",
            "Install it: fleet base install FILE; what is installed: fleet base list",
        )


def _shown(fleet: Fleet, row: BaseRow) -> dict[str, Any]:
    at, by = utc(row.installed.at_s), row.installed.by
    return {
        "digest": row.digest,
        **_record(fleet, row),
        "size": row.size,
        "file": row.path,
        "installed": {"at": at, "by": by, "why": row.installed.why},
        "used_by_policy": row.digest == _trained(fleet),
        "releases": list(fleet.registry.releases.bases().values()).count(row.digest),
    }


def _trained(fleet: Fleet) -> str:
    """Return the base that rounds by the policy train on, after a rebase too; empty without one."""
    held = fleet.registry.policy.newest()
    return "" if held is None else trained_base(fleet.registry, held.policy)


def _record(fleet: Fleet, row: BaseRow) -> dict[str, Any]:
    """Return what a base says of itself; one that cannot be read is listed with the reason."""
    told: dict[str, Any] = dict.fromkeys(("model", "classes", "rank", "trained_on"))
    try:
        record = base_in(fleet.registry.bases.content(row.digest)).record
    except FleetError as error:
        return {**told, "problem": error.message}
    return {
        "model": record.model.name,
        "classes": list(record.labels),
        "rank": record.rank,
        "trained_on": record.trained_on,
        "problem": "",
    }
