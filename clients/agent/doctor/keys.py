"""Checks of what the device proves itself with, and whom it trusts: key and root certificate."""

from __future__ import annotations

import importlib.util
import os
import stat
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from clients.agent.config import PRIVATE_KEY, PUBLIC_KEY
from clients.agent.doctor.finding import Finding, Subject, failed, fine, skipped, warn

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

__all__ = ["EXPIRY_NOTICE", "check_certificate", "check_key"]

EXPIRY_NOTICE = timedelta(days=30)
MAX_PEM_BYTES = 2**20
CURVE = "secp384r1"
INIT = "Make a key: fleet-device init --name NAME"
RENEW = "Ask the operator for the current root certificate and copy it to {path}."


def check_key(subject: Subject) -> Finding:
    """The private key is there, readable by its owner alone, and of the curve that Flower takes."""
    path = subject.state / PRIVATE_KEY
    try:
        found = path.lstat()
    except OSError:
        return failed(f"there is no key {path}", INIT)
    if not stat.S_ISREG(found.st_mode):
        return failed(f"{path} is not a plain file", INIT)
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        return failed(f"{path} has permissions {mode:04o}, others may read it", f"chmod 600 {path}")
    if found.st_uid != os.getuid() and os.getuid() != 0:
        return failed(
            f"{path} belongs to user {found.st_uid}, you are {os.getuid()}",
            "Run as the user of the agent, or give the state directory to it.",
        )
    folder = stat.S_IMODE(subject.state.stat().st_mode)
    if folder & 0o077:
        return warn(
            f"the state directory has permissions {folder:04o}", f"chmod 700 {subject.state}"
        )
    return _pair(path)


def _pair(path: Path) -> Finding:
    if importlib.util.find_spec("cryptography") is None:
        return warn(
            f"{path} has permissions 0600; its content was not read, cryptography is not installed",
            "pip install 'corefleet[device-agent]'",
        )
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec

    from clients.agent.keys import public_line, read_private_key

    try:
        key = read_private_key(path)
    except (ValueError, TypeError, UnsupportedAlgorithm, OSError) as error:
        return failed(f"{path} holds no OpenSSH private key: {error}", INIT)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != CURVE:
        return failed(f"{path} is no ECDSA P-384 key, which the SuperNode needs", INIT)
    try:
        written = (path.parent / PUBLIC_KEY).read_text(encoding="utf-8").split()[:2]
    except (OSError, UnicodeDecodeError):
        written = []
    if written != public_line(key).split()[:2]:
        return failed(
            f"{PUBLIC_KEY} does not belong to {PRIVATE_KEY}",
            f"Write it anew: ssh-keygen -y -f {path} > {path.parent / PUBLIC_KEY}",
        )
    return fine(f"{path}: ECDSA P-384, permissions {stat.S_IMODE(path.stat().st_mode):04o}")


def _now() -> datetime:
    return datetime.now(timezone.utc)


def check_certificate(subject: Subject, now: Callable[[], datetime] = _now) -> Finding:
    """The root certificate can be read, may sign others, and has not expired."""
    if subject.config is None:
        return skipped("there is no configuration that names a root certificate")
    path = subject.config.certificate_path(subject.state)
    renew = RENEW.format(path=path)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_PEM_BYTES)
    except OSError as error:
        result = failed if subject.config.server else warn
        return result(f"the root certificate {path} cannot be read ({error.strerror})", renew)
    if importlib.util.find_spec("cryptography") is None:
        return skipped(
            f"{path} is there; cryptography is not installed, so its dates were not read",
            "pip install 'corefleet[device-agent]'",
        )
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(content)
    except ValueError as error:
        return failed(f"{path} holds no PEM certificate: {error}", renew)
    return _dates(path, certificates, now(), renew)


def _dates(path: Path, roots: list[Certificate], now: datetime, renew: str) -> Finding:
    from cryptography import x509

    for each in roots:
        name = each.subject.rfc4514_string()
        try:
            constraints = each.extensions.get_extension_for_class(x509.BasicConstraints)
            signs = constraints.value.ca
        except x509.ExtensionNotFound:
            signs = False
        if not signs:
            return failed(f"{name} in {path} is no certificate authority", renew)
        begins = each.not_valid_before_utc
        if begins > now:
            return failed(
                f"{name} is valid from {begins:%Y-%m-%d}, and it is {now:%Y-%m-%d}",
                "Set the clock, see the check clock.",
            )
    ends = min(each.not_valid_after_utc for each in roots)
    if ends <= now:
        return failed(f"{path} expired on {ends:%Y-%m-%d}", renew)
    if ends - now < EXPIRY_NOTICE:
        return warn(f"{path} expires on {ends:%Y-%m-%d}", renew)
    return fine(f"{path}: {len(roots)} root(s), valid until {ends:%Y-%m-%d}")
