"""A device that lacks a release's base is sent it with the release: at once, and never in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from fleet.adapt.base import bytes_of_base
from fleet.federate.proof import proof_of
from fleet.federate.releases import base_with
from fleet.federate.signing import make_key, public_keys, public_of
from fleet.federate.wire import BASE_BUNDLE, LARGEST_BUNDLE_BYTES
from server.messages import payload_of
from server.signing import Signer
from server.standing import delivery
from server.standing.delivery import BASE_S, FIRST_PAUSE_S
from simulations.inprocess import InProcessGrid
from tests.server.registry.filled import OPERATOR
from tests.server.standing.mute import Mute
from tests.server.standing.standing import Fleet
from tests.server.standing.two_bases import Lacking, declined, moved, second


@pytest.fixture
def lacking(quick: Fleet) -> Lacking:
    """Three devices that serve release 1 of the one base that they have; rounds on order only."""
    quick.policy(rounds=1)
    quick.released(1)
    served(quick, 1)
    quick.policy(every_s=0.0)
    return Lacking(quick)


def served(fleet: Fleet, number: int) -> None:
    fleet.run(lambda: [fleet.devices.serves.get(d) for d in fleet.devices.names] == [number] * 3)


def later(fleet: Fleet, until: Callable[[], bool], looks: int = 100) -> None:
    """Let the service look up now and then, until something is so."""
    for _ in range(looks):
        if until():
            return
        fleet.grid.wait(5.0)
        fleet.steps(1)
    raise AssertionError(f"not after {looks} looks; last: {fleet.said[-3:]}")


def reason_of(fleet: Fleet, device: str) -> str:
    return fleet.registry.observations.deliveries()[device].reason


def test_every_device_is_told_declines_and_is_sent_the_base_at_once(lacking: Lacking) -> None:
    fleet = lacking.fleet
    base = second(fleet)
    moved(fleet, base)
    began = fleet.grid.clock()
    served(fleet, 2)
    assert fleet.grid.clock() - began < FIRST_PAUSE_S
    for name in fleet.devices.names:
        assert lacking.sent(name) == [(2, False), (2, True)]
        assert lacking.holds[name] == {fleet.base.digest, base}
        assert reason_of(fleet, name) == ""
    refused = fleet.events("release.refused")
    assert {each["again_in_s"] for each in refused} == {0.0}
    assert {each["reason"] for each in refused} == {"base-missing: release of a base not here"}
    told = [each for each in fleet.events("release.told") if "base" in each]
    assert {(each["base"], each["base_bytes"]) for each in told} == {(base, lacking.told[-1][2])}


def test_a_rollback_to_a_base_that_devices_hold_sends_no_base(lacking: Lacking) -> None:
    fleet = lacking.fleet
    moved(fleet, second(fleet))
    served(fleet, 2)
    lacking.told.clear()
    fleet.registry.releases.promote(1, why="worse", actor=OPERATOR)
    served(fleet, 1)
    fleet.registry.releases.promote(2, actor=OPERATOR)
    served(fleet, 2)
    assert {size for _, _, size in lacking.told} == {0}


def test_a_device_that_was_away_gets_base_and_release_when_it_comes_back(
    lacking: Lacking,
) -> None:
    fleet = lacking.fleet
    away = fleet.devices.names[1]
    fleet.offline.add(1)
    fleet.policy(every_s=0.0, minimum=2, quorum=2)
    moved(fleet, second(fleet))
    fleet.run(lambda: [*fleet.devices.serves.values()].count(2) == 2)
    fleet.registry.orders.place("start_round", actor=OPERATOR)
    fleet.released(3)
    lacking.told.clear()
    fleet.offline.clear()
    served(fleet, 3)
    assert lacking.sent(away) == [(3, False), (3, True)]


def test_the_reason_survives_a_restart_and_the_next_service_sends_the_base(
    lacking: Lacking,
) -> None:
    fleet = lacking.fleet
    moved(fleet, second(fleet))
    names = fleet.devices.names
    fleet.run(lambda: len(lacking.told) >= 3)
    fleet.service.deliveries.hear()
    assert {reason_of(fleet, name).partition(":")[0] for name in names} == {"base-missing"}
    assert {size for _, _, size in lacking.told} == {0}
    lacking.told.clear()
    fleet.start()
    served(fleet, 2)
    assert [lacking.sent(name) for name in names] == [[(2, True)]] * 3


def test_a_device_that_lacks_it_with_the_base_in_hand_is_told_after_growing_pauses(
    lacking: Lacking,
) -> None:
    fleet = lacking.fleet
    deaf = fleet.devices.names[0]
    lacking.deaf.add(deaf)
    times: list[float] = []

    def said(event: str, /, **values: Any) -> None:
        if event == "release.refused":
            assert values["device"] == deaf
            times.append(fleet.clock())

    moved(fleet, second(fleet))
    fleet.run(lambda: [*fleet.devices.serves.values()].count(2) == 2)
    fleet.start(say=said)
    lacking.told.clear()
    later(fleet, lambda: len(times) == 2)
    again = FIRST_PAUSE_S * 4  # the third and the fourth telling
    assert again <= times[1] - times[0] <= again + 10
    assert {sent for _, sent in lacking.sent(deaf)} == {True}
    wanted = "base-missing: though it was sent: release of a base not here"
    assert reason_of(fleet, deaf) == wanted
    lacking.deaf.clear()
    later(fleet, lambda: fleet.devices.serves[deaf] == 2)
    assert reason_of(fleet, deaf) == ""


def test_what_a_device_lacked_for_one_release_is_not_sent_with_another_one(
    lacking: Lacking,
) -> None:
    fleet = lacking.fleet
    deaf = fleet.devices.names[0]
    lacking.deaf.add(deaf)
    moved(fleet, second(fleet))
    fleet.run(lambda: reason_of(fleet, deaf).startswith("base-missing: though"))
    fleet.registry.releases.promote(0, why="worse", actor=OPERATOR)
    served(fleet, 0)
    assert lacking.sent(deaf) == [(2, False), (2, True), (0, False)]


def after_the_base(name: str, lacking: Lacking, code: str) -> Callable[[Message, Context], Message]:
    """Take the base, and decline the release for another reason."""

    def answer(message: Message, context: Context) -> Message:
        payload = payload_of(message.content)
        size = len(str(payload.config.get(BASE_BUNDLE, "")))
        lacking.told.append((name, int(str(payload.config["release"])), size))
        found = base_with(payload)
        if found is None and len(lacking.holds[name]) == 1:
            return declined(message, "base-missing")
        lacking.holds[name].add(payload.config["base"])  # type: ignore[arg-type]
        return declined(message, code)

    return answer


def test_a_device_that_took_the_base_and_declines_is_told_again_without_it(
    lacking: Lacking,
) -> None:
    fleet = lacking.fleet
    careful = fleet.devices.names[2]
    fleet.devices.answers[careful, "release"] = after_the_base(careful, lacking, "probe-fell")
    moved(fleet, second(fleet))
    later(fleet, lambda: len(lacking.sent(careful)) == 3)
    assert [sent for _, sent in lacking.sent(careful)] == [False, True, False]
    fleet.service.deliveries.hear()
    assert reason_of(fleet, careful).startswith("probe-fell: ")


def test_an_older_device_that_says_wrong_base_is_never_sent_it(lacking: Lacking) -> None:
    fleet = lacking.fleet
    older = fleet.devices.names[0]
    sizes: list[int] = []

    def answer(message: Message, context: Context) -> Message:
        sizes.append(len(str(payload_of(message.content).config.get(BASE_BUNDLE, ""))))
        return declined(message, "wrong-base")

    fleet.devices.answers[older, "release"] = answer
    moved(fleet, second(fleet))
    later(fleet, lambda: len(sizes) == 3)
    assert sizes == [0, 0, 0]


def test_the_bytes_of_a_base_count_as_the_devices_and_those_of_a_release_do_not(
    lacking: Lacking,
) -> None:
    fleet = lacking.fleet
    before = fleet.registry.observations.spent()
    base = second(fleet)
    size = len(bytes_of_base(fleet.service.bench.base(base)))
    moved(fleet, base)
    served(fleet, 2)
    for name in fleet.devices.names:
        more = fleet.registry.observations.spent()[name] - before[name]
        assert size < more < size + 8000
    fleet.registry.releases.promote(1, actor=OPERATOR)
    after = fleet.registry.observations.spent()
    served(fleet, 1)
    assert fleet.registry.observations.spent() == after


def test_a_base_with_its_release_proves_whose_it_is(lacking: Lacking) -> None:
    fleet = lacking.fleet
    key, proven = make_key(), list[bool]()
    fleet.start(sign=Signer(key))
    name = fleet.devices.names[0]
    honest = fleet.devices.answers[name, "release"]

    def looked(message: Message, context: Context) -> Message:
        payload = payload_of(message.content)
        release = fleet.registry.releases.load(int(str(payload.config["release"])))
        proof = proof_of(payload.config)
        assert proof is not None
        assert proof.signer(release, public_keys(public_of(key)))
        found = base_with(payload)
        proven.append(found is not None and found.digest == release.base)
        return honest(message, context)

    fleet.devices.answers[name, "release"] = looked
    moved(fleet, second(fleet))
    served(fleet, 2)
    assert proven == [False, True]


def test_a_base_too_large_for_a_message_is_said_with_the_next_step(
    lacking: Lacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = lacking.fleet
    large = bytes(LARGEST_BUNDLE_BYTES + 1)
    monkeypatch.setattr(delivery, "bundle_of", lambda content: large)
    moved(fleet, second(fleet))
    name = fleet.devices.names[0]
    fleet.run(lambda: reason_of(fleet, name).startswith("bundle-too-large: "))
    told = reason_of(fleet, name)
    assert f"at most {LARGEST_BUNDLE_BYTES} bytes" in told
    assert told.endswith("; Install it on each device: fleet-device base add FILE")
    assert {size for _, _, size in lacking.told} == {0}
    assert fleet.service.deliveries._bundle == ("", b"")
    lacking.holds[name] |= {row.digest for row in fleet.registry.bases.all()}  # by hand
    later(fleet, lambda: fleet.devices.serves[name] == 2)


def test_a_base_in_a_file_that_is_gone_is_a_reason_and_no_crash(
    lacking: Lacking, tmp_path: Path
) -> None:
    fleet = lacking.fleet
    base = second(fleet)
    moved(fleet, base)
    gone = tmp_path / "gone.safetensors"
    fleet.service.registry.bases.content = lambda digest: gone
    name = fleet.devices.names[0]
    fleet.run(lambda: reason_of(fleet, name).startswith("bundle-unreadable: "))
    del fleet.service.registry.bases.__dict__["content"]
    later(fleet, lambda: set(fleet.devices.serves.values()) == {2})


def test_only_so_many_are_sent_a_base_at_a_time(
    lacking: Lacking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LARGEST_BASES", 1)
    fleet = lacking.fleet
    under_way: list[int] = []
    put = fleet.service.deliveries._with_base.put

    def counted(*args: Any) -> list[str]:
        asked = put(*args)
        under_way.append(len(fleet.service.deliveries._with_base.under_way()))
        return asked

    fleet.service.deliveries._with_base.put = counted  # type: ignore[method-assign]
    moved(fleet, second(fleet))
    served(fleet, 2)
    assert under_way == [1, 1, 1]


def test_a_device_that_is_silent_with_the_base_under_way_has_longer_than_for_a_release(
    lacking: Lacking, mute: Mute
) -> None:
    fleet = lacking.fleet
    name = fleet.devices.names[0]
    questions = fleet.service.deliveries._with_base
    put = questions.put

    def slow(*args: Any) -> list[str]:
        mute.kinds.add((0, "query.release"))
        return put(*args)

    questions.put = slow  # type: ignore[method-assign]
    moved(fleet, second(fleet))
    fleet.run(lambda: [*fleet.devices.serves.values()].count(2) == 2)
    fleet.grid.wait(BASE_S - 60.0)
    fleet.steps(1)
    assert reason_of(fleet, name).startswith("base-missing: ")
    fleet.grid.wait(61.0)
    fleet.steps(1)
    assert reason_of(fleet, name) == f"no answer within {BASE_S:g} s"


def test_a_device_that_still_receives_a_base_is_told_the_next_release_once(
    lacking: Lacking,
) -> None:
    hidden: set[str] = set()

    class Slow(InProcessGrid):
        """The first device's answers stay away from where it was sent the base."""

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            made = list(messages)
            ids = list(super().push_messages(made))
            for each, message in zip(ids, made, strict=True):
                own = self.partition_of(message) == 0
                told = message.metadata.message_type == "query.release"
                brought = told and BASE_BUNDLE in payload_of(message.content).config
                if own and (brought or (told and hidden)):
                    hidden.add(each)
            return ids

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return super().pull_messages([each for each in message_ids if each not in hidden])

    fleet = lacking.fleet
    fleet.start(Slow)
    fleet.steps(3)
    fleet.policy(every_s=0.0, minimum=2, quorum=2)
    moved(fleet, second(fleet))
    fleet.run(lambda: [fleet.devices.serves.get(d) for d in fleet.devices.names[1:]] == [2, 2])
    fleet.registry.orders.place("start_round", actor=OPERATOR)
    fleet.released(3)
    fleet.steps(20)
    assert len(hidden) == 2  # the base with release 2, and release 3
