"""What a message proves of whose its release is, and to whom it says nothing new."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cryptography")

from fleet.adapt.state import CoreState
from fleet.errors import MismatchError
from fleet.federate.proof import PROOF_FORMAT, Proof, proof_of, with_proof
from fleet.federate.records import WIRE_FORMAT
from fleet.federate.releases import Release, catch_up
from fleet.federate.signing import key_id, make_key, public_keys, public_of, sign
from fleet.federate.wire import decode_plan, decode_state, encode_plan
from tests.fleet.federate.factories import LAYOUT, make_plan

KEY = make_key()
KEYS = public_keys(public_of(KEY))
STATE = CoreState.from_flat(LAYOUT, np.arange(LAYOUT.size, dtype=np.float32))
RELEASE = Release(3, "a" * 64, "b" * 64, "c" * 64, "core", STATE)


def flipped(text: str, bit: int) -> str:
    """Flip one bit of what hexadecimal digits stand for."""
    content = bytearray.fromhex(text)
    content[bit // 8] ^= 1 << bit % 8
    return content.hex()


def test_a_signed_plan_is_to_whoever_does_not_look_the_plan_that_it_was() -> None:
    plan = make_plan(release=3, state=STATE.digest)
    bare = encode_plan(plan, STATE)
    proven = with_proof(bare, RELEASE, sign(RELEASE, KEY))
    assert proven.config["format"] == WIRE_FORMAT
    assert decode_plan(proven) == plan
    assert decode_plan(proven).id == plan.id
    assert decode_state(proven, LAYOUT).digest == STATE.digest
    assert {k: proven.config[k] for k in bare.config} == bare.config
    assert proof_of(bare.config) is None


def test_a_release_without_a_signature_is_sent_as_before() -> None:
    message = catch_up(RELEASE)
    assert with_proof(message, RELEASE, "") is message


def test_what_is_proven_is_the_content_that_arrived_and_not_a_digest_that_is_claimed() -> None:
    proven = with_proof(catch_up(RELEASE), RELEASE, sign(RELEASE, KEY))
    proof = proof_of(proven.config)
    assert proof == Proof(RELEASE.parent, sign(RELEASE, KEY))
    assert proof.signer(RELEASE, KEYS) == key_id(public_of(KEY))
    assert RELEASE.digest not in map(str, proven.config.values())
    moved = STATE.flat().copy()
    moved.view(np.uint8)[7] ^= 1
    for other in (
        replace(RELEASE, state=CoreState.from_flat(LAYOUT, moved)),
        replace(RELEASE, number=4),
        replace(RELEASE, base=flipped(RELEASE.base, 9)),
        replace(RELEASE, frame=flipped(RELEASE.frame, 0)),
        replace(RELEASE, parent=flipped(RELEASE.parent, 255)),
        replace(RELEASE, method="bias"),
    ):
        assert proof.signer(other, KEYS) == ""


@pytest.mark.parametrize("bit", [0, 7, 255, 256, 300, 511])
def test_a_flipped_bit_of_a_signature_is_of_nothing(bit: int) -> None:
    proof = Proof(RELEASE.parent, flipped(sign(RELEASE, KEY), bit))
    assert proof.signer(RELEASE, KEYS) == ""


def test_any_of_several_keys_may_have_signed_and_it_is_said_which() -> None:
    old, new = make_key(), make_key()
    keys = public_keys(public_of(new) + public_of(old))
    assert Proof(RELEASE.parent, sign(RELEASE, old)).signer(RELEASE, keys) == key_id(public_of(old))
    assert Proof(RELEASE.parent, sign(RELEASE, KEY)).signer(RELEASE, keys) == ""
    assert Proof(RELEASE.parent, sign(RELEASE, KEY)).signer(RELEASE, {}) == ""


@pytest.mark.parametrize(
    ("found", "side"), [(PROOF_FORMAT + 1, "receiver"), (0, "sender"), ("1", "receiver")]
)
def test_another_format_of_signatures_tells_which_side_to_upgrade(found: object, side: str) -> None:
    with pytest.raises(MismatchError, match=f"signatures of format {PROOF_FORMAT}") as refused:
        proof_of({"signed": found, "signature": "x"})
    assert (refused.value.code, refused.value.hint) == ("signature-format", f"Upgrade the {side}.")


def test_a_signature_from_before_there_was_a_format_proves_nothing() -> None:
    assert proof_of({"signature": sign(RELEASE, KEY)}) is None
