"""The device's key pair, in the forms that Flower 1.41 reads.

``flower-supernode --auth-supernode-private-key`` takes an OpenSSH private key of a NIST curve,
``flwr supernode register`` the OpenSSH public key; both are what ``ssh-keygen -t ecdsa -b 384``
writes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.agent.config import PRIVATE_KEY, PUBLIC_KEY
from fleet.errors import InputError, UnavailableError
from fleet.files import atomic_path

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["make_keys", "public_line", "read_private_key"]

MAX_KEY_BYTES = 16 * 2**10


def make_keys(state: Path, comment: str) -> str:
    """Make an ECDSA P-384 pair in ``state``; return the public key's line.

    The private key is created with permissions 0600 and never passes through a readable file. A
    pair that is there stays: the server knows the device by it.

    Raises:
        InputError: ``key-exists``.
        UnavailableError: ``extra-missing`` without cryptography.
        StorageError: When a file could not be written.
    """
    private, public = state / PRIVATE_KEY, state / PUBLIC_KEY
    if private.exists():
        raise InputError(
            "key-exists",
            f"{private} exists; the server knows the device by it",
            "Keep it, or remove both files of the pair first and enroll again.",
        )
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "extra-missing",
            "a key pair needs the 'device-agent' extra; cryptography is not installed",
            "pip install 'corefleet[device-agent]'",
        ) from error
    key = ec.generate_private_key(ec.SECP384R1())
    content = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    line = f"{public_line(key)} {comment}\n"
    # The public key goes first: a pair that is cut off has no private key and is made anew.
    _write(public, line.encode(), 0o644)
    _write(private, content, 0o600)
    return line.strip()


def read_private_key(path: Path) -> Any:
    """Read an OpenSSH private key without a password; raises what cryptography raises."""
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    with open(path, "rb") as file:
        return load_ssh_private_key(file.read(MAX_KEY_BYTES), None)


def public_line(key: ec.EllipticCurvePrivateKey) -> str:
    """Return the public key as OpenSSH writes it, without a comment."""
    from cryptography.hazmat.primitives import serialization

    return (
        key.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode()
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    with atomic_path(path) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "wb") as file:
            file.write(content)
