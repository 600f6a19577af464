"""Verbs about releases: what the fleet serves, and going back."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet.errors import FleetError, InputError
from fleet.federate.releases import save_release
from fleet.federate.signing import public_keys, verify
from server.control import requests as r
from server.control.seam import Answer
from server.control.verbs.fleet import Fleet
from server.control.verbs.life import life
from server.control.verbs.pinning import pinned
from server.control.verbs.shown import shown_release
from server.control.verbs.touched import moved_by, rounds_of, touched
from server.registry.records import Device, ReleaseRow
from server.standing.line import told_of

__all__ = [
    "diff",
    "export",
    "listed",
    "pin",
    "promote",
    "rollback",
    "show",
    "verified",
    "withdraw",
]


def listed(fleet: Fleet, actor: str, asked: r.ReleaseList) -> Answer:
    """List the newest releases, by number."""
    current = fleet.registry.releases.current()
    rows = fleet.registry.releases.all()[-asked.newest :]
    return Answer({"releases": [shown_release(row, current) for row in rows]})


def show(fleet: Fleet, actor: str, asked: r.ReleaseShow) -> Answer:
    """Show one release: what it is, how it came about, who serves it and who should."""
    current = _current(fleet)
    row = current if asked.release is None else fleet.registry.releases.get(asked.release)
    release = fleet.registry.releases.load(row.number)
    devices = [each for each in fleet.registry.devices.all() if each.revoked is None]
    shown = shown_release(row, fleet.registry.releases.current()) | {
        "frame": row.frame,
        "entries": release.state.layout.size,
        "norm": round(release.state.norm, 6),
        "rebase": told_of(row.provenance),
        "provenance": dict(row.provenance),
        "served_by": [each.name for each in devices if each.serves_release == row.number],
        "pinned": [each.name for each in devices if each.pinned == row.number],
        "layers": {
            name: {"shape": list(array.shape), "largest": float(abs(array).max(initial=0.0))}
            for name, array in release.state.arrays.items()
        },
    }
    return Answer({"release": shown})


def diff(fleet: Fleet, actor: str, asked: r.ReleaseDiff) -> Answer:
    """Compare two releases: how far each layer moved."""
    current = fleet.registry.releases.current()
    rows = [fleet.registry.releases.get(number) for number in (asked.first, asked.second)]
    first, second = (fleet.registry.releases.load(row.number) for row in rows)
    if first.state.layout.digest != second.state.layout.digest:
        raise InputError(
            "other-layout",
            f"releases {asked.first} and {asked.second} have other entries; nothing to compare",
            "Choose two of one base and method: fleet release list",
        )
    moved = second.state - first.state
    layers = {
        name: {
            "norm": float((array.astype("float64") ** 2).sum() ** 0.5),
            "largest": float(abs(array).max(initial=0.0)),
        }
        for name, array in moved.arrays.items()
    }
    return Answer(
        {
            "from": shown_release(rows[0], current),
            "to": shown_release(rows[1], current),
            "same_base": first.base == second.base,
            "norm": moved.norm,
            "layers": layers,
        }
    )


def export(fleet: Fleet, actor: str, asked: r.ReleaseExport) -> Answer:
    """Return a release as the bytes of a file."""
    row = fleet.registry.releases.get(asked.release)
    release = fleet.registry.releases.load(asked.release)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "release.safetensors"
        save_release(release, path)
        content = path.read_bytes()
    data = {
        "number": row.number,
        "digest": row.digest,
        "signature": row.signature or None,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return Answer(data, content)


def verified(fleet: Fleet, actor: str, asked: r.ReleaseVerify) -> Answer:
    """Check digest, lineage and signature of every release.

    A release may be of any key by which this fleet's service ever signed; ``key`` names it.
    """
    rows = fleet.registry.releases.all()
    known = {row.digest: row.number for row in rows}
    keys = fleet.registry.signers.all()
    if fleet.release_public is not None:
        keys = public_keys(fleet.release_public) | keys
    found = [_examined(fleet, row, known, keys) for row in rows]
    sound = all(not each["problems"] for each in found)
    return Answer({"sound": sound, "signatures_checked": bool(keys), "releases": found})


def promote(fleet: Fleet, actor: str, asked: r.ReleasePromote) -> Answer:
    """Make a release the fleet's."""
    return _moved(fleet, actor, asked, asked.release)


def rollback(fleet: Fleet, actor: str, asked: r.ReleaseRollback) -> Answer:
    """Make an earlier release the fleet's: the same digest as before, state is never subtracted.

    Raises:
        InputError: ``nothing-before`` at the first release, ``not-earlier`` for a later one.
    """
    target, current = asked.release, fleet.registry.releases.current()
    if target is None:
        target = _before(fleet)
    elif current is not None and target > current.number:
        raise InputError(
            "not-earlier",
            f"a rollback goes back: release {target} is later than {current.number}",
            f"To go forward: fleet release promote {target}",
        )
    return _moved(fleet, actor, asked, target)


def pin(fleet: Fleet, actor: str, asked: r.ReleasePin) -> Answer:
    """Keep devices on a release, or let them follow the fleet again: one change for all.

    Raises:
        InputError: ``one-of-both`` unless a device or a tag is named, ``no-such-tag``.
    """
    chosen = _chosen(fleet, asked)
    target = None if asked.release is None else fleet.registry.releases.get(asked.release)
    if asked.dry_run:
        names = [each.name for each in chosen if each.pinned != asked.release]
    else:
        names = pinned(fleet, actor, asked)
    reach = touched(names, [] if target is None else [target.number])
    return Answer({"dry_run": asked.dry_run, "touches": reach, "release": asked.release})


def withdraw(fleet: Fleet, actor: str, asked: r.ReleaseWithdraw) -> Answer:
    """Forbid that devices are moved to a release."""
    row = fleet.registry.releases.get(asked.release)
    changed = row.withdrawn is None
    pinned = [each.name for each in fleet.registry.devices.all() if each.pinned == row.number]
    if not asked.dry_run:
        row = fleet.registry.releases.withdraw(
            row.number, why=asked.why, actor=actor, key=asked.key
        )
    return _destroyed(fleet, row, asked, touched(pinned, [row.number]), changed)


def _moved(fleet: Fleet, actor: str, asked: r.Destruction, number: int) -> Answer:
    releases = fleet.registry.releases
    row, current = releases.get(number), releases.current()
    following = [each for each in fleet.registry.devices.all() if each.pinned is None]
    left = [] if current is None else [current.number]
    reach = touched(moved_by(fleet, row, following), [*left, number], rounds_of(fleet))
    if not asked.dry_run:
        row = releases.promote(number, why=asked.why, actor=actor, key=asked.key)
    told = _destroyed(fleet, row, asked, reach, number not in left)
    return Answer({**told.data, **life(fleet).record()})


def _destroyed(
    fleet: Fleet, row: ReleaseRow, asked: r.Destruction, reach: dict[str, Any], changed: bool
) -> Answer:
    shown = shown_release(row, fleet.registry.releases.current())
    data = {"dry_run": asked.dry_run, "touches": reach, "changed": changed, "release": shown}
    return Answer(data)


def _chosen(fleet: Fleet, asked: r.ReleasePin) -> list[Device]:
    if bool(asked.device) == bool(asked.tag):
        raise InputError(
            "one-of-both", "a pin is for one device or one tag", "Use --device NAME or --tag TAG."
        )
    if asked.device:
        return [fleet.registry.devices.get(asked.device)]
    found = [each for each in fleet.registry.devices.all(tag=asked.tag) if each.revoked is None]
    if not found:
        raise InputError(
            "no-such-tag", f"no device has the tag {asked.tag!r}", "See: fleet device list"
        )
    return found


def _current(fleet: Fleet) -> ReleaseRow:
    found = fleet.registry.releases.current()
    if found is None:
        raise InputError("no-release", "the fleet is on no release yet", "See: fleet release list")
    return found


def _before(fleet: Fleet) -> int:
    current = _current(fleet)
    line = fleet.registry.releases.lineage(current.number)
    sound = [row.number for row in line[1:] if row.withdrawn is None]
    if not sound:
        raise InputError(
            "nothing-before",
            f"release {current.number} was made from none that the fleet could go back to",
            "See them: fleet release list",
        )
    return sound[0]


def _examined(
    fleet: Fleet, row: ReleaseRow, known: dict[str, int], keys: Mapping[str, bytes]
) -> dict[str, Any]:
    problems = []
    try:
        fleet.registry.releases.load(row.number)
    except FleetError as error:
        problems.append(error.message)
    if row.number and known.get(row.parent, row.number) >= row.number:
        problems.append(f"its parent {row.parent[:12]}… is no earlier release")
    signature, signer = "absent", None
    if row.signature:
        signer = next((i for i, key in keys.items() if verify(row, row.signature, key)), None)
        signature = ("good" if signer else "bad") if keys else "unchecked"
    if signature == "bad":
        problems.append(f"its signature is by none of this server's keys ({', '.join(keys)})")
    if signature == "absent" and fleet.release_public is not None and row.number:
        problems.append("it is not signed, and this server signs")
    return {
        "number": row.number,
        "digest": row.digest,
        "signature": signature,
        "key": signer,
        "problems": problems,
    }
