"""Whose plans the agent carries out: with a key pinned, only what it signed, to the letter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography")

from fleet.federate.proof import with_proof
from fleet.federate.releases import Release
from fleet.federate.signing import sign, sign_plan
from tests.clients.agent.answering.devices import (
    Device,
    train_message,
)
from tests.clients.agent.answering.signed import (
    KEY,
    NOTHING,
    OTHER,
    flipped,
    message,
    refused,
    trust,
    with_config,
)


@pytest.mark.parametrize("number", [0, 2])
def test_a_plan_without_its_own_signature_is_refused(
    pinned: Device, releases: list[Release], number: int
) -> None:
    start = releases[number]
    error = refused(pinned, "train", with_proof(train_message(start), start, sign(start, KEY)))
    assert error.code == "unsigned-plan"
    assert "Upgrade the server" in error.hint
    health = pinned.ask("query.health", NOTHING).config
    assert health["counter.releases-refused.unsigned-plan"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 999},
        {"learning_rate": 0.050001},
        {"round": 9},
        {"seed": 1},
        {"compression": "int4"},
    ],
)
def test_a_plan_of_which_one_field_was_changed_is_refused(
    pinned: Device, releases: list[Release], changes: dict[str, Any]
) -> None:
    good = message("train", releases[2])
    forged = train_message(releases[2], **changes).config["plan"]
    assert forged != good.config["plan"]
    assert refused(pinned, "train", with_config(good, plan=forged)).code == "bad-plan-signature"


def test_a_plan_signed_by_another_key_or_by_a_releases_signature_is_refused(
    pinned: Device, releases: list[Release]
) -> None:
    good = message("train", releases[2])
    for signature in (
        sign_plan(str(good.config["plan"]), OTHER),
        flipped(str(good.config["plan_signature"])),
        str(good.config["signature"]),
        "",
    ):
        forged = with_config(good, plan_signature=signature)
        assert refused(pinned, "train", forged).code == "bad-plan-signature"


def test_without_a_key_a_plan_needs_no_signature(device: Device, releases: list[Release]) -> None:
    device.ask("train", with_config(train_message(releases[2]), plan_signature="nothing"))


def test_a_plan_that_was_answered_is_answered_again_whoever_signed_it(
    device: Device, state: Path, releases: list[Release]
) -> None:
    first = device.ask("train", message("train", releases[1], None))
    trust(device, state, KEY)
    again = device.ask("train", message("train", releases[1], None))
    assert again.array.tobytes() == first.array.tobytes()
