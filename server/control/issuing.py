"""Makes an operator's files: certificate, key, root and profile."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fleet.errors import InputError, StorageError
from fleet.files import write_bytes
from server.control.certificates import identity_of, issue
from server.control.operators import Operators
from server.control.reach import Profile, registry_place, save_profile
from server.control.roles import Role
from server.registry import open_registry
from server.service.authority import Pair, expiry_of
from server.service.folder import ServerFolder, read_bytes, write_private

__all__ = ["Issue", "issued"]


@dataclass(frozen=True)
class Issue:
    """What is asked for.

    Args:
        name: As the audit will name them.
        role: What they may do.
        out: Folder of the files; made if need be, for its owner alone.
        connect: ``HOST:PORT`` of the control API; may be empty.
    """

    name: str
    role: Role
    out: Path
    connect: str = ""


def issued(folder: ServerFolder, wanted: Issue, actor: str, now: datetime) -> dict[str, Any]:
    """Make an operator's files in a folder of their own, and write the certificate down.

    Args:
        folder: Of the server, whose authority signs.
        wanted: What is asked for.
        actor: Who issues it, for the audit.
        now: The time, with its zone.

    Returns:
        JSON: name, role, serial number, expiry and the files.

    Raises:
        InputError: ``no-server``, ``operator-name``, or ``operator-files`` where some are there.
        StorageError: ``write-failed`` and its like, or the registry's own.
    """
    folder.check_made()
    certificate, key = wanted.out / "operator.crt", wanted.out / "operator.key"
    if key.exists():
        raise InputError(
            "operator-files", f"{key} is there already; a key is never replaced", "Choose --out."
        )
    authority = Pair(read_bytes(folder.authority), read_bytes(folder.authority_key))
    made = issue(authority, wanted.name, wanted.role, now)
    who, expires = identity_of(made.certificate, now), expiry_of(made.certificate)
    # First, so that nobody has one that cannot be taken back.
    with open_registry(registry_place(folder), clock=now.timestamp) as registry:
        Operators(registry, now.timestamp).issued(who, expires.timestamp(), actor=actor)
    try:
        wanted.out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            "write-failed", f"{wanted.out} cannot be made ({error.strerror})"
        ) from error
    write_private(key, made.key)
    write_bytes(certificate, made.certificate)
    write_bytes(wanted.out / "ca.crt", authority.certificate)
    profile = wanted.out / "control.toml"
    own = Profile(connect=wanted.connect, certificate=certificate.name, key=key.name, root="ca.crt")
    save_profile(profile, own)
    return {
        "name": wanted.name,
        "role": wanted.role.value,
        "serial": who.serial,
        "expires": expires.isoformat(),
        "certificate": str(certificate),
        "key": str(key),
        "profile": str(profile),
    }
