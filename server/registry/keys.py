"""Public keys of devices, named by their fingerprints."""

from __future__ import annotations

import base64
import binascii
import hashlib

from fleet.errors import InputError

__all__ = ["LARGEST_KEY", "NEW_KEY", "fingerprint"]

LARGEST_KEY = 8192
"""Characters of a public key."""
NEW_KEY = (
    "On the device move node-key and node-key.pub aside, then: fleet-device init; "
    "enrol the new node-key.pub under the same name"
)
"""The next step where a key is another's, or was revoked."""


def fingerprint(public_key: str) -> str:
    """Return the SHA-256 of a public key's own bytes, without its comment.

    Args:
        public_key: A line as OpenSSH writes it.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: ``bad-key``.
    """
    # One form alone: in another the same key would have another fingerprint, and come back by it.
    words = public_key.split()
    one_line = len(public_key.strip().splitlines()) == 1
    try:
        content = base64.b64decode(words[1], validate=True) if len(words) > 1 and one_line else b""
    except (binascii.Error, ValueError):
        content = b""
    if not content or len(public_key) > LARGEST_KEY:
        raise InputError(
            "bad-key",
            f"a public key is an OpenSSH line of at most {LARGEST_KEY} characters, not "
            f"{public_key[:40]!r}",
            "Take it from the device: fleet-device enroll.",
        )
    return hashlib.sha256(content).hexdigest()
