"""Makes an operator's files: certificate, key, root and profile."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from fleet.errors import InputError, StorageError
from fleet.files import write_bytes
from server.control.certificates import issue
from server.control.reach import Profile, save_profile
from server.control.roles import Role
from server.service.authority import Pair, expiry_of
from server.service.folder import ServerFolder, read_bytes, write_private

__all__ = ["issued"]


def issued(
    folder: ServerFolder, name: str, role: Role, out: Path, connect: str, now: datetime
) -> dict[str, Any]:
    """Make an operator's files in a folder of their own.

    Args:
        folder: Of the server, whose authority signs.
        name: As the audit will name them.
        role: What they may do.
        out: Where; made if need be, for its owner alone.
        connect: ``HOST:PORT`` of the control API; may be empty.
        now: The time, with its zone.

    Returns:
        JSON: name, role, expiry and the files.

    Raises:
        InputError: ``no-server``, ``operator-name``, or ``operator-files`` where some are there.
        StorageError: ``write-failed`` and its like.
    """
    folder.check_made()
    certificate, key = out / "operator.crt", out / "operator.key"
    if key.exists():
        raise InputError(
            "operator-files", f"{key} is there already; a key is never replaced", "Choose --out."
        )
    authority = Pair(read_bytes(folder.authority), read_bytes(folder.authority_key))
    made = issue(authority, name, role, now)
    try:
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError("write-failed", f"{out} cannot be made ({error.strerror})") from error
    write_private(key, made.key)
    write_bytes(certificate, made.certificate)
    write_bytes(out / "ca.crt", authority.certificate)
    profile = out / "control.toml"
    save_profile(
        profile,
        Profile(connect=connect, certificate=certificate.name, key=key.name, root="ca.crt"),
    )
    return {
        "name": name,
        "role": role.value,
        "expires": expiry_of(made.certificate).isoformat(),
        "certificate": str(certificate),
        "key": str(key),
        "profile": str(profile),
    }
