"""Signed releases: Ed25519 over a release's identity, so that a device knows whose it is.

A digest tells that a release is whole; a signature tells that this fleet's server made it. What is
signed is the release's name, which covers number, base, frames, parent, method and state, under a
word that no other signature of ours has.
"""

from __future__ import annotations

from typing import Any, Protocol

from fleet.adapt.digest import canonical_json
from fleet.errors import InputError, UnavailableError

__all__ = ["SIGNED_FORMAT", "Signed", "identity_of", "make_key", "public_of", "sign", "verify"]

SIGNED_FORMAT = "corefleet.release-signature.1"
SIGNATURE_BYTES = 64


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


def verify(release: Signed, signature: str, public: bytes) -> bool:
    """Tell whether a signature is of this release and by the owner of a public key (PEM).

    Raises:
        InputError: ``release-key`` when ``public`` is no Ed25519 key; a signature that is none is
            merely not of this release.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        content = bytes.fromhex(signature)
        _public(public).verify(content, identity_of(release))
    except (InvalidSignature, ValueError):
        return False
    return len(content) == SIGNATURE_BYTES


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
        "A server makes its own: fleet server init",
    )


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "extra-missing",
            "signatures need the package cryptography, which is not installed",
            "Install it: pip install 'corefleet[server]'",
        ) from error
    return serialization, ed25519
