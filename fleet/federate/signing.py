"""Signed releases: Ed25519 over a release's identity, so that a device knows whose it is.

A digest tells that a release is whole; a signature tells that this fleet's server made it. What is
signed is the release's name, which covers number, base, frames, parent, method and state, under a
word that no other signature of ours has. A plan is signed as it is written on the wire, letter by
letter, so that it covers every field: also those that a later version has.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

from fleet.adapt.digest import canonical_json
from fleet.errors import InputError, StorageError, UnavailableError

__all__ = [
    "MOST_KEYS",
    "PLAN_FORMAT",
    "SIGNED_FORMAT",
    "Signed",
    "identity_of",
    "key_id",
    "make_key",
    "public_keys",
    "public_of",
    "read_key",
    "sign",
    "sign_plan",
    "verify",
    "verify_plan",
]

SIGNED_FORMAT = "corefleet.release-signature.1"
PLAN_FORMAT = "corefleet.plan-signature.1"
SIGNATURE_BYTES = 64
MOST_KEYS = 4
"""Public keys in one file: the server's, and while it changes, the one before."""
MAX_KEY_BYTES = 16 * 2**10
_PEM_END = b"-----END PUBLIC KEY-----"


class Signed(Protocol):
    """What is signed: anything with a release's digest, e.g. a ``Release``."""

    @property
    def digest(self) -> str:
        """The release's name, 64 hexadecimal digits."""


def identity_of(release: Signed) -> bytes:
    """Return the bytes that are signed: canonical JSON of format and digest."""
    return canonical_json([SIGNED_FORMAT, release.digest])


def make_key() -> bytes:
    """Make a private key for signing releases.

    Returns:
        PEM, PKCS #8, without a password; whoever has it can sign for the fleet.

    Raises:
        UnavailableError: ``extra-missing`` without the package cryptography.
    """
    serialization, ed25519 = _cryptography()
    made = ed25519.Ed25519PrivateKey.generate()
    return bytes(
        made.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def public_of(key: bytes) -> bytes:
    """Return the public key (PEM) of a private one (PEM); devices get it when they enrol.

    Raises:
        InputError: ``release-key``.
    """
    serialization, _ = _cryptography()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    public = _private(key).public_key()
    return bytes(public.public_bytes(serialization.Encoding.PEM, form))


def read_key(path: Path) -> bytes:
    """Read a private key, and look at it now rather than when the first release is signed.

    Raises:
        StorageError: ``unreadable``.
        InputError: ``release-key``.
    """
    try:
        with open(path, "rb") as file:
            key = file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise StorageError(
            "unreadable",
            f"the release key {path} cannot be read: {error.strerror}",
            "Run as the user of the server; it made the key: fleet server init",
        ) from error
    public_of(key)
    return key


def public_keys(content: bytes) -> dict[str, bytes]:
    """Read the public keys of a file, by :func:`key_id`.

    Args:
        content: PEM, one key after the other; at most :data:`MOST_KEYS`.

    Returns:
        Each key as :func:`public_of` writes it, in the file's order.

    Raises:
        InputError: ``release-key`` for no key, too many, or one that is none.
        UnavailableError: ``extra-missing`` without the package cryptography.
    """
    serialization, _ = _cryptography()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    parts = content.split(_PEM_END)[:-1]
    if not 1 <= len(parts) <= MOST_KEYS:
        raise _no_key("public", f"{len(parts)} PEM keys, of 1 to {MOST_KEYS}")
    found: dict[str, bytes] = {}
    for part in parts:
        key = _public(part + _PEM_END + b"\n")
        public = bytes(key.public_bytes(serialization.Encoding.PEM, form))
        found[key_id(public)] = public
    return found


def key_id(public: bytes) -> str:
    """Return a public key's (PEM) short name: 16 hexadecimal digits of SHA-256 over its 32 bytes.

    Raises:
        InputError: ``release-key``.
    """
    return hashlib.sha256(_public(public).public_bytes_raw()).hexdigest()[:16]


def sign(release: Signed, key: bytes) -> str:
    """Sign a release.

    Args:
        release: What to sign.
        key: What :func:`make_key` returned.

    Returns:
        128 hexadecimal digits; the same for the same release and key.

    Raises:
        InputError: ``release-key``.
    """
    return bytes(_private(key).sign(identity_of(release))).hex()


def sign_plan(record: str, key: bytes) -> str:
    """Sign a plan.

    Args:
        record: The plan as its message has it.
        key: What :func:`make_key` returned.

    Returns:
        128 hexadecimal digits; the same for the same plan and key.

    Raises:
        InputError: ``release-key``.
    """
    return bytes(_private(key).sign(_plan_identity(record))).hex()


def verify(release: Signed, signature: str, public: bytes) -> bool:
    """Tell whether a signature is of this release and by the owner of a public key (PEM).

    Raises:
        InputError: ``release-key`` when ``public`` is no Ed25519 key; a signature that is none is
            merely not of this release.
    """
    return _is_of(identity_of(release), signature, public)


def verify_plan(record: str, signature: str, public: bytes) -> bool:
    """Tell whether a signature is of this plan and by the owner of a public key (PEM).

    Raises:
        InputError: As :func:`verify`.
    """
    return _is_of(_plan_identity(record), signature, public)


def _plan_identity(record: str) -> bytes:
    return canonical_json([PLAN_FORMAT, record])


def _is_of(identity: bytes, signature: str, public: bytes) -> bool:
    key = _public(public)
    from cryptography.exceptions import InvalidSignature

    try:
        content = bytes.fromhex(signature)
        key.verify(content, identity)
    except (InvalidSignature, ValueError):
        return False
    # One spelling per signature: upper case or spaces would be another one.
    return len(content) == SIGNATURE_BYTES and content.hex() == signature


def _private(key: bytes) -> Any:
    serialization, ed25519 = _cryptography()
    try:
        found = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise _no_key("private", str(error)) from error
    if not isinstance(found, ed25519.Ed25519PrivateKey):
        raise _no_key("private", f"it is a {type(found).__name__}")
    return found


def _public(key: bytes) -> Any:
    serialization, ed25519 = _cryptography()
    try:
        found = serialization.load_pem_public_key(key)
    except (ValueError, TypeError) as error:
        raise _no_key("public", str(error)) from error
    if not isinstance(found, ed25519.Ed25519PublicKey):
        raise _no_key("public", f"it is a {type(found).__name__}")
    return found


def _no_key(kind: str, why: str) -> InputError:
    return InputError(
        "release-key",
        f"releases are signed by Ed25519; that is no {kind} key of it: {why.splitlines()[0][:120]}",
        "A server makes its own: fleet server init; its release-key.pub is what devices pin.",
    )


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "extra-missing",
            "signatures need the package cryptography, which is not installed",
            "Install it: pip install 'corefleet[server]', on a device 'corefleet[device-agent]'",
        ) from error
    return serialization, ed25519
