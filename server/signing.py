"""The server's private key: signs what devices are to take from this fleet alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from fleet.federate.releases import Release
from fleet.federate.signing import public_of, sign, sign_plan

__all__ = ["Signer"]


@dataclass(frozen=True)
class Signer:
    """Signs by one key.

    Args:
        key: PEM, as ``fleet.federate.signing.read_key`` reads it; never shown.
    """

    key: bytes = field(repr=False)

    def __call__(self, release: Release) -> bytes:
        """Return the signature of a release, 64 bytes."""
        return bytes.fromhex(sign(release, self.key))

    def plan(self, record: str) -> str:
        """Return the signature of a plan as it is written in its message, hexadecimal."""
        return sign_plan(record, self.key)

    @property
    def public(self) -> bytes:
        """The public half, PEM."""
        return public_of(self.key)
