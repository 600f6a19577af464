"""Records as answers: plain JSON, the same keys always, times in UTC."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from server.registry.records import AuditRow, Deed, Device, DeviceState, ReleaseRow, RoundRow

__all__ = [
    "should_serve",
    "shown_audit",
    "shown_device",
    "shown_release",
    "shown_round",
    "utc",
]


def utc(at_s: float | None) -> str | None:
    """Return a time as ISO 8601 in UTC, to the second; None for none."""
    if at_s is None:
        return None
    return datetime.fromtimestamp(at_s, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def should_serve(device: Device, current: ReleaseRow | None) -> int | None:
    """Return the release that a device should serve; None where it should serve none."""
    if device.state is DeviceState.revoked:
        return None
    if device.pinned is not None:
        return device.pinned
    return None if current is None else current.number


def shown_device(device: Device, current: ReleaseRow | None) -> dict[str, Any]:
    """Return a device as JSON; ``in_step`` tells whether it serves what it should."""
    should = should_serve(device, current)
    serves = None if device.serves_release < 0 else device.serves_release
    return {
        "name": device.name,
        "state": device.state.value,
        "tags": list(device.tags),
        "fingerprint": device.fingerprint,
        "seen_at": utc(device.seen_at_s),
        "unable": str(device.status.get("reason", "")),
        "version": str(device.status.get("version", "")),
        "train_windows": device.status.get("train_windows"),
        "serves": serves,
        "should_serve": should,
        "in_step": None if should is None or serves is None else serves == should,
        "pinned": device.pinned,
        "enrolled": _deed(device.enrolled),
        "quarantined": _deed(device.quarantined),
        "revoked": _deed(device.revoked),
    }


def shown_release(release: ReleaseRow, current: ReleaseRow | None) -> dict[str, Any]:
    """Return a release as JSON, without its provenance and state."""
    return {
        "number": release.number,
        "digest": release.digest,
        "parent": release.parent or None,
        "base": release.base,
        "method": release.method,
        "current": current is not None and current.number == release.number,
        "signed": bool(release.signature),
        "created": _deed(release.created),
        "promoted": _deed(release.promoted),
        "withdrawn": _deed(release.withdrawn),
    }


def shown_round(row: RoundRow, accepted: int, refused: int) -> dict[str, Any]:
    """Return an attempt of a round as JSON, without its cohort and plan."""
    seconds = None if row.closed is None else round(row.closed.at_s - row.opened.at_s, 3)
    return {
        "round": row.round,
        "attempt": row.attempt,
        "state": row.state.value,
        "starts_from": row.plan.release,
        "release": row.release,
        "asked": len(row.selected),
        "accepted": accepted,
        "refused": refused,
        "seconds": seconds,
        "opened": _deed(row.opened),
        "deadline_at": utc(row.deadline_at_s),
        "closed": _deed(row.closed),
        "plan": row.plan.id,
        "traffic": dict(row.traffic),
    }


def shown_audit(rows: Iterable[AuditRow]) -> list[dict[str, Any]]:
    """Return rows of the audit as JSON."""
    return [
        {
            "seq": row.seq,
            "at": utc(row.at_s),
            "actor": row.actor,
            "verb": row.verb,
            "subject": row.subject,
            "detail": dict(row.detail),
            "hash": row.hash,
        }
        for row in rows
    ]


def _deed(deed: Deed | None) -> dict[str, Any] | None:
    return None if deed is None else {"at": utc(deed.at_s), "by": deed.by, "why": deed.why}
