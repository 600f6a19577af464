"""Whose releases the agent takes: only those that a pinned key signed, once one is pinned."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cryptography")

from clients.agent.answering.releases import WANTED
from clients.agent.pinned import REFUSED
from clients.agent.serving.kept import KeptRelease
from clients.link.caller import ask
from clients.link.records import About, Declined, Request
from clients.link.service import serve
from fleet.adapt.base import read_bundle, write_bundle
from fleet.errors import InputError, MismatchError, StorageError
from fleet.federate.proof import PROOF_FORMAT, with_plan_proof
from fleet.federate.releases import Release
from fleet.federate.signing import key_id, public_of, sign, sign_plan
from fleet.federate.wire import Payload
from tests.clients.agent.answering.devices import (
    NAME,
    Device,
    Turned,
    cut_off_at,
    opened,
    release_message,
    train_message,
)
from tests.clients.agent.answering.signed import (
    KEY,
    KINDS,
    MESSAGES,
    NOTHING,
    OTHER,
    flipped,
    message,
    refused,
    trust,
    with_config,
)


@KINDS
def test_a_release_that_the_pinned_key_signed_is_taken(
    pinned: Device, releases: list[Release], kind: str
) -> None:
    pinned.ask(kind, message(kind, releases[2]))
    if kind != "evaluate":  # judging keeps nothing
        kept = pinned.serving.held.kept(2)
        assert (kept.published, kept.signed_by) == (releases[2].digest, key_id(public_of(KEY)))
        assert pinned.serving.served is not None
        assert pinned.serving.served.number == 2
    assert pinned.store.counters.all().keys().isdisjoint({"releases-refused.bad-signature"})


@KINDS
def test_a_release_without_a_signature_is_refused_counted_and_reported(
    pinned: Device, turned: Turned, releases: list[Release], kind: str
) -> None:
    error = refused(pinned, kind, message(kind, releases[2], None))
    assert error.code == "unsigned-release"
    assert "release 2 came without a signature" in error.message
    assert "Upgrade the server" in error.hint
    health = pinned.ask("query.health", NOTHING).config
    assert health["counter.releases-refused.unsigned-release"] == 1
    assert (health["release-refused"], health["release"]) == ("unsigned-release", 0)
    assert health["release-refused-detail"] == error.message
    assert [each["reason"] for each in turned.said("release.refused")] == ["unsigned-release"]


@KINDS
def test_a_release_taken_after_a_refusal_ends_the_report(
    pinned: Device, turned: Turned, releases: list[Release], kind: str
) -> None:
    turned.seconds = 60.0
    refused(pinned, kind, message(kind, releases[2], OTHER))
    health = pinned.ask("query.health", NOTHING).config
    assert health["release-refused-at-s"] == turned.world().now()
    pinned.ask(kind, message(kind, releases[2]))
    health = pinned.ask("query.health", NOTHING).config
    assert not [name for name in health if name.startswith("release-refused")]
    assert health["counter.releases-refused.bad-signature"] == 1
    assert pinned.store.state.get(REFUSED) is None


def test_a_release_is_taken_also_where_the_end_of_a_refusal_cannot_be_written(
    pinned: Device,
    turned: Turned,
    releases: list[Release],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused(pinned, "evaluate", message("evaluate", releases[2], OTHER))

    def full(key: str, value: Any) -> None:
        raise StorageError("disk-full", "the disk is full", "")

    monkeypatch.setattr(pinned.store.state, "put", full)
    assert pinned.ask("evaluate", message("evaluate", releases[2]))
    assert [each["reason"] for each in turned.said("store.refused")] == ["disk-full"]


@KINDS
def test_a_flipped_bit_of_signature_key_or_parent_is_refused(
    pinned: Device, releases: list[Release], kind: str
) -> None:
    good = message(kind, releases[2])
    for bad in (
        message(kind, releases[2], OTHER),
        with_config(good, signature=flipped(str(good.config["signature"]))),
        with_config(good, signature=""),
        with_config(good, parent=flipped(str(good.config["parent"]))),
        with_config(good, parent=""),
        with_config(good, signature=sign(releases[1], KEY), parent=releases[1].parent),
    ):
        assert refused(pinned, kind, bad).code == "bad-signature"
    assert pinned.store.counters.all()["releases-refused.bad-signature"] == 6


@KINDS
def test_a_signature_for_other_content_is_refused(
    pinned: Device, releases: list[Release], kind: str
) -> None:
    moved = releases[2].state.flat().copy()
    moved.view(np.uint8)[11] ^= 1
    state = type(releases[2].state).from_flat(releases[2].state.layout, moved)
    for forged in (replace(releases[2], state=state), replace(releases[2], number=9)):
        # Whole in itself: digests and plan are of what it carries, only the signature is not.
        proof = {"signed": PROOF_FORMAT, "parent": forged.parent}
        payload = with_config(MESSAGES[kind](forged), signature=sign(releases[2], KEY), **proof)
        assert refused(pinned, kind, payload).code == "bad-signature"


def test_another_format_of_signatures_is_refused_with_which_side_to_upgrade(
    pinned: Device, releases: list[Release]
) -> None:
    newer = with_config(message("query.release", releases[2]), signed=PROOF_FORMAT + 1)
    error = refused(pinned, "query.release", newer)
    assert (error.code, error.hint) == ("signature-format", "Upgrade the receiver.")


def test_a_server_from_before_plans_were_signed_is_told_to_upgrade(
    pinned: Device, releases: list[Release]
) -> None:
    older = with_config(release_message(releases[2]), signature=sign(releases[2], KEY))
    error = refused(pinned, "query.release", older)
    assert error.code == "unsigned-release"
    assert "Upgrade the server" in error.hint


def test_without_a_key_everything_is_taken_as_it_comes(
    device: Device, releases: list[Release]
) -> None:
    for number, key in ((1, None), (2, KEY), (3, OTHER)):
        assert device.ask("query.release", message("query.release", releases[number], key))
        assert device.serving.held.kept(number).signed_by == ""
    newer = with_config(message("train", releases[3]), signed=PROOF_FORMAT + 1)
    assert device.ask("train", newer)


def test_the_base_itself_needs_no_signature_and_nothing_else_passes_for_it(
    pinned: Device, releases: list[Release]
) -> None:
    plan = with_plan_proof(train_message(releases[0]), partial(sign_plan, key=KEY))
    assert pinned.ask("train", plan)
    assert pinned.ask("query.release", message("query.release", releases[0], None))
    zero = replace(releases[0], number=7)
    assert refused(pinned, "query.release", message("query.release", zero, None)).code == (
        "unsigned-release"
    )
    moved = replace(releases[1], number=0)
    assert refused(pinned, "query.release", message("query.release", moved, None)).code == (
        "unsigned-release"
    )


def test_what_was_verified_is_taken_again_without_a_signature_also_after_a_restart(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world()) as device:
        trust(device, state, KEY)
        for number in (1, 2):
            device.ask("query.release", message("query.release", releases[number]))
    with opened(state, turned.world()) as device:
        trust(device, state, KEY)
        device.ask("query.release", message("query.release", releases[1], None))
        assert device.serving.served is not None
        assert device.serving.served.number == 1
        changed = replace(releases[1], state=releases[3].state)
        error = refused(device, "query.release", message("query.release", changed, None))
        assert error.code == "unsigned-release"


def test_a_rollback_by_the_signature_of_then_is_taken(
    pinned: Device, releases: list[Release]
) -> None:
    served = [
        pinned.ask("query.release", message("query.release", releases[number])).config["serves"]
        for number in (1, 2, 1)
    ]
    assert served[0] == served[2] != served[1]


def test_what_was_kept_before_a_key_was_pinned_is_new_to_it(
    device: Device, state: Path, releases: list[Release]
) -> None:
    device.ask("query.release", message("query.release", releases[1], None))
    device.ask("query.release", message("query.release", releases[2], None))
    trust(device, state, KEY)
    with pytest.raises(MismatchError, match="came without a signature"):
        device.ask("query.release", message("query.release", releases[1], None))
    device.ask("query.release", message("query.release", releases[1]))
    assert device.serving.held.kept(1).signed_by == key_id(public_of(KEY))


def test_another_key_is_pinned_by_hand_without_a_restart_and_only_then_counts(
    pinned: Device, state: Path, releases: list[Release]
) -> None:
    pinned.ask("query.release", message("query.release", releases[1]))
    by_other = message("query.release", releases[2], OTHER)
    assert refused(pinned, "query.release", by_other).code == "bad-signature"
    trust(pinned, state, OTHER, KEY)  # while it changes, both
    pinned.ask("query.release", by_other)
    pinned.ask("query.release", message("query.release", releases[1], None))
    trust(pinned, state, OTHER)
    pinned.ask("query.release", message("query.release", releases[2], None))
    error = refused(pinned, "query.release", message("query.release", releases[1], None))
    assert error.code == "unsigned-release"


@pytest.mark.parametrize(
    ("content", "code"), [(None, "release-key-missing"), (b"no key", "release-key")]
)
def test_a_pinned_key_that_cannot_be_read_trusts_nobody(
    pinned: Device, state: Path, releases: list[Release], content: bytes | None, code: str
) -> None:
    path = state / "release-key.pub"
    path.unlink() if content is None else path.write_bytes(content)
    for kind in MESSAGES:
        error = refused(pinned, kind, message(kind, releases[2]))
        assert isinstance(error, InputError)
        assert error.code == code
    assert pinned.store.counters.all()[f"releases-refused.{code}"] == 3


def test_a_swap_that_was_cut_off_is_not_finished_with_what_nobody_signed(
    state: Path, turned: Turned, releases: list[Release]
) -> None:
    with opened(state, turned.world()) as device:
        cut_off_at(device, releases[1])
        trust(device, state, KEY)
        device.agent.finish()
        assert device.serving.served is not None
        assert device.serving.served.number == 0
        assert turned.said("release.kept")[-1]["reason"] == "unsigned-release"
        assert device.store.state.get(WANTED) is None
        signed = KeptRelease.of_release(releases[1])
        known = replace(signed, signed_by=key_id(public_of(KEY)))
        device.store.state.put(WANTED, device.serving._take(known).name)
        device.agent.finish()
        assert device.serving.served.number == 1


def test_what_waits_for_a_key_counts_no_refusal_however_often_it_is_looked_at(
    pinned: Device, state: Path, turned: Turned, releases: list[Release]
) -> None:
    known = replace(KeptRelease.of_release(releases[1]), signed_by=key_id(public_of(KEY)))
    pinned.store.state.put(WANTED, pinned.serving._take(known).name)
    (state / "release-key.pub").rename(state / "away")
    for _ in range(3):
        pinned.agent.finish()
    assert turned.said("release.kept")[-1]["reason"] == "release-key-missing"
    assert pinned.store.counters.all().keys().isdisjoint({"releases-refused.release-key-missing"})
    assert pinned.store.state.get(REFUSED) is None
    (state / "away").rename(state / "release-key.pub")
    pinned.agent.finish()
    assert pinned.serving.served is not None
    assert pinned.serving.served.number == 1


@contextmanager
def socket_of(device: Device) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="link"))  # short enough for a socket's path
    folder.chmod(0o700)
    server = serve(folder / "a", device.agent.answer, lambda: About(NAME, 1, "0", ""))
    try:
        yield folder / "a"
    finally:
        server.close(grace_s=5)
        shutil.rmtree(folder)


def test_over_the_link_a_signed_release_is_served_and_another_declined_with_its_reason(
    pinned: Device, releases: list[Release]
) -> None:
    with socket_of(pinned) as socket:
        trained = ask(socket, Request("train", message("train", releases[1]), 60.0))
        assert isinstance(trained, Payload), trained
        served = ask(socket, Request("query.release", message("query.release", releases[2]), 60.0))
        assert isinstance(served, Payload)
        assert served.config["release"] == 2
        for key, code in ((OTHER, "bad-signature"), (None, "unsigned-release")):
            for kind in MESSAGES:
                no = ask(socket, Request(kind, message(kind, releases[3], key), 60.0))
                assert isinstance(no, Declined), no
                assert no.code == code
    assert pinned.serving.served is not None
    assert pinned.serving.served.number == 2


def test_a_release_kept_by_software_without_signatures_is_read_as_unverified(
    device: Device, releases: list[Release]
) -> None:
    kept = device.serving.take(releases[1])
    path = device.serving.folder.release_file(kept.name)
    tensors, record = read_bundle(path, "corefleet.kept.1")
    del record["signed_by"]
    write_bundle(path, tensors, record)
    again = device.serving.held.kept(1)
    assert (again.published, again.signed_by) == (releases[1].digest, "")
