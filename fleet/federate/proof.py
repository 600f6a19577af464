"""What a message says to prove whose its release is: a few optional fields of its flat config.

    signed     format of this proof, :data:`PROOF_FORMAT`
    parent     digest of the release before; the one part of a release's name that devices lack
    signature  128 hexadecimal digits, see ``fleet.federate.signing``
    plan_signature  of a message with a plan: the same, of the plan as it is written there

Whoever does not look for them reads the message as before, so the wire's format stays; they are no
part of a plan, so a plan's id does not depend on whether its release is signed. What is verified is
the digest of what arrived, recomputed: no digest is sent along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fleet.errors import MismatchError
from fleet.federate.releases import Release
from fleet.federate.signing import verify, verify_plan
from fleet.federate.wire import Payload

__all__ = ["PROOF_FORMAT", "Proof", "plan_signer", "proof_of", "with_plan_proof", "with_proof"]

PROOF_FORMAT = 1


@dataclass(frozen=True)
class Proof:
    """What a message brings along to prove whose its release is.

    Args:
        parent: Digest of the release that it was made from; empty for number 0.
        signature: Hexadecimal.
    """

    parent: str
    signature: str

    def signer(self, release: Release, keys: Mapping[str, bytes]) -> str:
        """Return the id of the key that signed a release; empty when none of ``keys`` did.

        Args:
            release: What arrived, with this proof's parent.
            keys: Public keys (PEM) by id, see :func:`fleet.federate.signing.public_keys`.
        """
        return next((i for i, key in keys.items() if verify(release, self.signature, key)), "")


def with_proof(payload: Payload, release: Release, signature: str) -> Payload:
    """Return a message about a release together with the proof of it.

    Args:
        payload: A plan, or a release to serve or to judge.
        release: The release that its array is the state of.
        signature: Hexadecimal; empty for one that is not signed, which changes nothing.
    """
    if not signature:
        return payload
    proof = {"parent": release.parent, "signature": signature}
    return Payload(payload.array, {**payload.config, "signed": PROOF_FORMAT, **proof})


def with_plan_proof(payload: Payload, sign: Callable[[str], str]) -> Payload:
    """Return a message with a plan together with the proof whose the plan is.

    Args:
        payload: The message.
        sign: Signs a plan as it is written in a message, see ``fleet.federate.signing.sign_plan``.
    """
    signature = sign(str(payload.config["plan"]))
    return Payload(payload.array, {**payload.config, "plan_signature": signature})


def plan_signer(config: Mapping[str, Any], keys: Mapping[str, bytes]) -> str | None:
    """Return the id of the key that signed the plan of a message.

    Args:
        config: The message's.
        keys: Public keys (PEM) by id.

    Returns:
        Empty when none of ``keys`` did; None when the message brings no signature of its plan.
    """
    signature = config.get("plan_signature")
    if signature is None:
        return None
    plan = str(config.get("plan", ""))
    return next((i for i, key in keys.items() if verify_plan(plan, str(signature), key)), "")


def proof_of(config: Mapping[str, Any]) -> Proof | None:
    """Read the proof of a message; None when it brings none, as before there were any.

    Raises:
        MismatchError: ``signature-format`` with which side to upgrade.
    """
    found = config.get("signed")
    if found is None:
        return None
    if found != PROOF_FORMAT or isinstance(found, bool):
        older = isinstance(found, int) and found < PROOF_FORMAT
        raise MismatchError(
            "signature-format",
            f"this side reads signatures of format {PROOF_FORMAT}, the message has {found!r:.40}",
            f"Upgrade the {'sender' if older else 'receiver'}.",
        )
    return Proof(str(config.get("parent", "")), str(config.get("signature", "")))
