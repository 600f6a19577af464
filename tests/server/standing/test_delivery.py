"""Promoting, pinning and rolling back are changes of the registry; devices follow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fleet.federate.proof import plan_signer, proof_of
from fleet.federate.signing import key_id, make_key, public_keys, public_of, verify
from fleet.federate.wire import decode_plan, decode_state
from server.messages import payload_of
from server.signing import Signer
from server.standing.delivery import FIRST_PAUSE_S
from tests.server.registry.filled import OPERATOR
from tests.server.standing.standing import Answer, Fleet


def served(fleet: Fleet, number: int) -> None:
    fleet.run(lambda: [fleet.devices.serves.get(d) for d in fleet.devices.names] == [number] * 3)


def test_a_new_release_reaches_every_device_and_the_registry_knows(quick: Fleet) -> None:
    quick.policy(rounds=1)
    quick.released(1)
    served(quick, 1)
    for name in quick.devices.names:
        device = quick.registry.devices.get(name)
        assert (device.serves_release, device.serves) == (1, quick.devices.kernels(1))
    assert {
        d: each.reason for d, each in quick.registry.observations.deliveries().items()
    } == dict.fromkeys(quick.devices.names, "")


def test_a_rollback_brings_every_device_back_with_one_core_sized_message(quick: Fleet) -> None:
    quick.policy()
    quick.released(2)
    served(quick, 2)
    before = quick.registry.releases.get(1).digest
    quick.devices.told.clear()
    quick.devices.told_bytes.clear()
    quick.registry.releases.promote(1, why="worse", actor=OPERATOR)
    served(quick, 1)
    quick.steps(3)
    assert sorted(quick.devices.told) == [(name, 1) for name in quick.devices.names]
    release = quick.registry.releases.load(1)
    assert set(quick.devices.told_bytes) == {release.state.layout.size * 4}
    current = quick.registry.releases.current()
    assert current is not None
    assert (current.number, current.digest) == (1, before)
    kernels = {quick.registry.devices.get(name).serves for name in quick.devices.names}
    assert kernels == {quick.devices.kernels(1)}


def test_after_a_rollback_rounds_go_on_from_the_earlier_release_with_a_new_number(
    quick: Fleet,
) -> None:
    quick.policy()
    quick.released(2)
    quick.registry.releases.promote(1, why="worse", actor=OPERATOR)
    quick.policy(rounds=3)
    quick.released(3)
    third = quick.registry.releases.get(3)
    assert third.parent == quick.registry.releases.get(1).digest
    assert quick.registry.rounds.get(3).plan.release == 1
    assert quick.registry.replay(3).same


def test_a_pinned_device_stays_while_the_fleet_moves_on(quick: Fleet) -> None:
    quick.policy(rounds=1)
    quick.released(1)
    pinned = quick.devices.names[0]
    quick.registry.devices.pin(pinned, 0, actor=OPERATOR)
    quick.run(lambda: quick.devices.serves.get(quick.devices.names[1]) == 1)
    quick.steps(3)
    assert quick.devices.serves.get(pinned, 0) == 0
    quick.registry.devices.pin(pinned, None, actor=OPERATOR)
    served(quick, 1)


def test_a_release_that_is_not_promoted_reaches_nobody(quick: Fleet) -> None:
    quick.policy(rounds=1, auto_promote=False)
    quick.released(1)
    quick.steps(4)
    assert quick.devices.told == []
    quick.registry.releases.promote(1, actor=OPERATOR)
    served(quick, 1)


def test_a_round_does_not_undo_a_rollback_that_was_ordered_meanwhile(quick: Fleet) -> None:
    quick.policy()
    quick.released(1)

    def rolled_back(message: Message, context: Context) -> Message:
        if quick.registry.releases.current().number == 1:  # type: ignore[union-attr]
            quick.registry.releases.promote(0, why="no", actor=OPERATOR)
        return quick.devices._honest("train", quick.devices.names[0], message, context)

    quick.devices.answers[quick.devices.names[0], "train"] = rolled_back
    quick.released(2)
    current = quick.registry.releases.current()
    assert current is not None
    assert current.number == 0
    assert quick.events("round.released")[-1]["promoted"] is False


def declines(message: Message, context: Context) -> Message:
    config = ConfigRecord({"format": 1, "declined": "probe-fell", "detail": "0.9 to 0.5"})
    return Message(RecordDict({"config": config}), reply_to=message)


def test_a_device_that_declines_a_release_is_told_again_after_ever_longer_pauses(
    quick: Fleet,
) -> None:
    quick.policy(rounds=1)
    careful = quick.devices.names[0]
    quick.devices.answers[careful, "release"] = declines
    times = []

    def said(event: str, /, **values: Any) -> None:
        if event == "release.refused":
            times.append(quick.clock())
            assert values["reason"] == "probe-fell: 0.9 to 0.5"

    quick.start(say=said)
    quick.run(lambda: len(times) == 3, steps=150)
    first, second = times[1] - times[0], times[2] - times[1]
    assert FIRST_PAUSE_S <= first <= FIRST_PAUSE_S + 5
    assert 2 * FIRST_PAUSE_S <= second <= 2 * FIRST_PAUSE_S + 5
    kept = quick.registry.observations.deliveries()[careful]
    assert (kept.release, kept.tries, kept.reason) == (1, 3, "probe-fell: 0.9 to 0.5")
    del quick.devices.answers[careful, "release"]
    quick.registry.releases.promote(0, actor=OPERATOR)
    quick.registry.releases.promote(1, actor=OPERATOR)
    quick.run(lambda: quick.devices.serves.get(careful) == 1, steps=200)


def test_a_device_that_serves_other_kernels_than_it_should_is_told_again(quick: Fleet) -> None:
    quick.policy(rounds=1)
    quick.released(1)
    served(quick, 1)
    odd = quick.devices.names[2]
    quick.devices.says[odd] = {"serves": "5e" * 32}
    quick.devices.told.clear()
    quick.start()
    quick.run(lambda: bool(quick.devices.told), steps=80)
    assert {device for device, _ in quick.devices.told} == {odd}
    kept = quick.registry.observations.deliveries()[odd]
    assert kept.reason.startswith("serves kernels 5e5e5e5e5e5e…, not ")


def test_a_device_that_comes_back_catches_up_at_once(quick: Fleet) -> None:
    quick.offline.add(1)
    quick.policy(minimum=2, quorum=2)
    quick.released(2)
    away = quick.devices.names[1]
    assert quick.registry.rounds.absences(1)[away].reason == "offline"
    quick.offline.clear()
    quick.run(lambda: quick.devices.serves.get(away) == 2)
    assert [number for device, number in quick.devices.told if device == away] == [2]


def test_a_device_that_serves_nothing_is_told_nothing(quick: Fleet) -> None:
    quick.devices.says[quick.devices.names[0]] = {"serves": "", "release": -1}
    quick.policy(rounds=1)
    quick.released(1)
    quick.steps(3)
    assert {device for device, _ in quick.devices.told} == set(quick.devices.names[1:])


def test_releases_are_signed_and_carry_their_signature_to_the_devices(quick: Fleet) -> None:
    key, signatures = make_key(), []

    def check(message: Message, context: Context) -> Message:
        signatures.append(str(payload_of(message.content).config["signature"]))
        return declines(message, context)

    quick.devices.answers[quick.devices.names[0], "release"] = check
    quick.start(sign=Signer(key))
    quick.policy(rounds=1)
    quick.released(1)
    quick.run(lambda: bool(signatures))
    row = quick.registry.releases.get(1)
    assert signatures == [row.signature]
    assert verify(row, row.signature, public_of(key))


def test_plans_evaluations_and_releases_prove_whose_they_are(quick: Fleet) -> None:
    key, proven = make_key(), list[tuple[str, int]]()
    keys = public_keys(public_of(key))
    careful = quick.devices.names[0]

    def looked(kind: str) -> Answer:
        def answer(message: Message, context: Context) -> Message:
            payload = payload_of(message.content)
            proof = proof_of(payload.config)
            number = int(str(payload.config.get("release", -1)))
            if kind == "train":
                number = decode_plan(payload).release
            release = quick.registry.releases.load(number)
            state = decode_state(payload, release.state.layout)
            assert proof is not None
            assert proof.parent == release.parent
            assert proof.signer(replace(release, state=state), keys)
            assert bool(plan_signer(payload.config, keys)) is (kind == "train")
            proven.append((kind, number))
            return quick.devices._honest(kind, careful, message, context)

        return answer

    for kind in ("train", "evaluate", "release"):
        quick.devices.answers[careful, kind] = looked(kind)
    quick.start(sign=Signer(key))
    quick.policy(rounds=2, evaluate_every=1)
    quick.released(2)
    served(quick, 2)
    assert [number for kind, number in proven if kind == "train"] == [0, 1]
    assert ("evaluate", 2) in proven
    assert ("release", 2) in proven
    quick.registry.releases.promote(1, why="worse", actor=OPERATOR)
    signature = quick.registry.releases.get(1).signature
    served(quick, 1)  # by the signature that it had
    assert ("release", 1) in proven
    assert quick.registry.releases.get(1).signature == signature


def test_a_service_keeps_the_public_half_of_each_key_that_it_signed_with(quick: Fleet) -> None:
    for key in (one := make_key(), two := make_key(), two):
        quick.start(sign=Signer(key))
        quick.steps(1)
    assert list(quick.registry.signers.all()) == [key_id(public_of(key)) for key in (one, two)]


def test_a_service_without_a_key_sends_what_it_sent_before(quick: Fleet) -> None:
    configs = []

    def looked(message: Message, context: Context) -> Message:
        configs.append(payload_of(message.content).config)
        return quick.devices._honest("train", quick.devices.names[0], message, context)

    quick.devices.answers[quick.devices.names[0], "train"] = looked
    quick.policy(rounds=1)
    quick.released(1)
    assert [sorted(config) for config in configs] == [["format", "plan"]]


def test_a_signature_costs_a_plan_240_bytes_and_they_are_counted(quick: Fleet) -> None:
    quick.policy(rounds=1)
    quick.released(1)
    quick.start(sign=Signer(make_key()))
    quick.policy(rounds=3)
    quick.released(3)
    costs = [quick.registry.rounds.get(number).traffic["wire_bytes_down"] for number in (2, 3)]
    # Release 1 is from before there was a key, so it is sent as it is kept: unsigned.
    assert (costs[1] - costs[0]) / 3 == pytest.approx(240, abs=10), costs
