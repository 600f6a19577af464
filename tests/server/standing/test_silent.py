"""A node that is online and gives no answer holds up nobody else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Context, Message

from server.asking import TTL_SLACK_S
from server.standing.delivery import TELL_S
from server.standing.judging import AWAY_S, LARGEST_UNDER_WAY, LONGEST_EVALUATION_S
from server.standing.nodes import STATUS_EVERY_S, STATUS_S
from simulations.inprocess import InProcessGrid
from tests.server.registry.filled import OPERATOR
from tests.server.standing.standing import Fleet
from tests.server.standing.test_doors import keyed, with_keys

# What rounds and answers take in simulated time: a look a second, no more.
BRIEF_S = 10.0


class Mute:
    """Nodes that stay online and do not answer, by partition and kind of message."""

    def __init__(self) -> None:
        self.kinds: set[tuple[int, str]] = set()
        self.to: dict[str, tuple[int, str]] = {}

    def grid(self, base: type[InProcessGrid]) -> type[InProcessGrid]:
        mute = self

        class Muted(base):  # type: ignore[misc, valid-type]
            def push_messages(self, messages: Iterable[Message]) -> list[str]:
                made = list(messages)
                ids: list[str] = super().push_messages(made)
                for each, message in zip(ids, made, strict=True):
                    mute.to[each] = (self.partition_of(message), message.metadata.message_type)
                return ids

            def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
                speak = {each for each in message_ids if mute.to[each] not in mute.kinds}
                found: list[Message] = super().pull_messages(speak)
                return found

        return Muted


@pytest.fixture
def mute(quick: Fleet) -> Mute:
    """Three devices with keys; each of them may fall silent."""
    made = Mute()
    keys = with_keys(quick, dict(enumerate(quick.devices.names)))
    quick.start(made.grid(keyed(keys)), keyed=True)
    return made


def test_a_node_that_never_says_who_it_is_delays_no_round_of_the_others(
    quick: Fleet, mute: Mute
) -> None:
    silent = quick.devices.names[2]
    mute.kinds.add((2, "query.status"))
    quick.policy(minimum=2, quorum=2)
    quick.released(2)
    assert quick.grid.clock() <= BRIEF_S
    absent = quick.registry.rounds.absences(1)[silent]
    assert (absent.reason, absent.detail) == ("silent", "has not said anything yet")


def test_a_node_that_falls_silent_is_left_out_with_the_reason_until_it_is_heard_again(
    quick: Fleet, mute: Mute
) -> None:
    silent = quick.devices.names[2]
    quick.policy(minimum=2, quorum=2, rounds=1)
    quick.released(1)
    assert silent in quick.registry.rounds.get(1).selected
    mute.kinds |= {(2, "query.status"), (2, "train")}
    quick.grid.wait(STATUS_EVERY_S)
    quick.run(lambda: bool(quick.events("node.silent")), steps=int(STATUS_S) + 5)
    (said,) = quick.events("node.silent")
    assert (said["device"], said["times"]) == (silent, 1)
    began = quick.grid.clock()
    quick.policy(minimum=2, quorum=2, rounds=3)
    quick.released(3)
    assert quick.grid.clock() - began <= BRIEF_S
    absent = quick.registry.rounds.absences(3)[silent]
    detail = "online, but 1 time(s) in a row no answer within 30 s"
    assert (absent.reason, absent.detail) == ("silent", detail)
    mute.kinds.clear()
    quick.steps(2)  # its late answer is heard; nothing has to be asked again
    quick.policy(minimum=2, quorum=2, rounds=4)
    quick.released(4)
    assert silent in quick.registry.rounds.get(4).selected


def test_a_silent_node_is_asked_again_after_ever_longer_pauses(quick: Fleet, mute: Mute) -> None:
    mute.kinds.add((2, "query.status"))
    while quick.grid.clock() < 300.0:
        quick.steps(1)
        quick.grid.wait(4.0)
    assert [each["again_in_s"] for each in quick.events("node.silent")] == [60.0, 120.0, 240.0]
    assert len(asked(mute, 2, "query.status")) == 3


def asked(mute: Mute, partition: int, kind: str) -> list[tuple[int, str]]:
    return [each for each in mute.to.values() if each == (partition, kind)]


def test_a_device_that_does_not_take_a_release_in_time_delays_no_round(
    quick: Fleet, mute: Mute
) -> None:
    slow = quick.devices.names[2]
    mute.kinds.add((2, "query.release"))
    quick.policy(minimum=3, quorum=3, rounds=2)
    quick.released(2)
    assert quick.grid.clock() <= BRIEF_S
    assert quick.registry.observations.deliveries().get(slow) is None
    quick.steps(int(TELL_S) + 10)
    kept = quick.registry.observations.deliveries()[slow]
    assert (kept.release, kept.reason) == (2, f"no answer within {TELL_S:g} s")
    mute.kinds.clear()
    quick.run(lambda: quick.devices.serves.get(slow) == 2)
    quick.steps(2)
    assert quick.registry.observations.deliveries()[slow].reason == ""


def test_a_device_is_not_told_a_release_twice_while_it_takes_it(quick: Fleet, mute: Mute) -> None:
    mute.kinds.add((1, "query.release"))
    quick.policy(rounds=1)
    quick.released(1)
    quick.steps(20)
    assert len(asked(mute, 1, "query.release")) == 1
    quick.policy(rounds=2)
    quick.released(2)
    quick.steps(3)  # of another release it is told at once
    assert len(asked(mute, 1, "query.release")) == 2


def test_reports_are_heard_while_a_round_is_open(quick: Fleet, mute: Mute) -> None:
    device = quick.devices.names[1]
    quick.policy(minimum=2, quorum=3, rounds=2, deadline_s=300.0)
    quick.released(1)
    mute.kinds |= {(1, "query.release"), (2, "train")}
    heard = []

    def wait(seconds: float) -> None:
        quick.grid.wait(seconds)
        if quick.registry.open_round() is not None:
            mute.kinds.discard((1, "query.release"))
            heard.append(quick.registry.observations.deliveries().get(device))

    object.__setattr__(quick.service.world, "wait", wait)
    quick.run(lambda: len(quick.registry.rounds.all()) == 2)
    assert heard[-1] is not None
    assert (heard[-1].release, heard[-1].reason) == (1, "")


def test_an_order_waits_for_devices_that_may_yet_say_who_they_are(quick: Fleet, mute: Mute) -> None:
    mute.kinds |= {(0, "query.status"), (1, "query.status"), (2, "query.status")}
    quick.policy(every_s=0.0)
    order = quick.registry.orders.place("start_round", actor=OPERATOR)
    quick.steps(5)
    assert quick.registry.orders.get(order.id).state.value == "taken"
    mute.kinds.clear()
    quick.released(1)
    assert quick.registry.orders.get(order.id).result == {"round": 1, "attempt": 1}


def test_an_order_fails_when_they_stay_silent(quick: Fleet, mute: Mute) -> None:
    mute.kinds |= {(0, "query.status"), (1, "query.status"), (2, "query.status")}
    quick.policy(every_s=0.0)
    order = quick.registry.orders.place("start_round", actor=OPERATOR)
    quick.steps(int(STATUS_S) + 5)
    why = quick.registry.orders.get(order.id).error
    assert "needs 3 eligible device(s), 0 are" in why
    assert "silent" in why


def test_questions_are_forgotten_when_their_messages_expire(quick: Fleet, mute: Mute) -> None:
    mute.kinds.add((2, "query.status"))
    quick.steps(1)
    open_now = quick.service.roster.questions._open
    assert len(open_now) == 1
    quick.grid.wait(STATUS_S + TTL_SLACK_S)
    quick.service.roster.refresh()
    assert quick.service.roster.questions._open == {}


def judged_in(quick: Fleet, release: int) -> dict[str, Any]:
    """Let the service work until a release is judged; return what was said of it."""
    quick.run(
        lambda: any(each["release"] == release for each in quick.events("release.evaluated")),
        steps=int(LONGEST_EVALUATION_S) + 60,
    )
    (said,) = [each for each in quick.events("release.evaluated") if each["release"] == release]
    return said


def without_counts(quick: Fleet, release: int) -> dict[str, str]:
    """Return why devices have no counts in the last evaluation of a release."""
    row = quick.registry.audit.rows(subject=f"release {release}")[-1]
    assert row.verb == "release.evaluate"
    found: dict[str, str] = row.detail.get("absent", {})
    return found


def test_a_device_that_does_not_judge_delays_no_round_and_has_its_reason_in_the_audit(
    quick: Fleet, mute: Mute
) -> None:
    slow = quick.devices.names[2]
    mute.kinds.add((2, "evaluate"))
    quick.policy(rounds=2, evaluate_every=1)
    quick.released(2)
    assert quick.grid.clock() <= BRIEF_S
    for release in (1, 2):
        said = judged_in(quick, release)
        why = f"no-reply: no answer within {LONGEST_EVALUATION_S:g} s"
        assert (said["devices"], said["absent"]) == (2, 1)
        assert sorted(quick.registry.observations.evaluation(release)) == sorted(
            quick.devices.names[:2]
        )
        row = quick.registry.audit.rows(subject=slow)[-1]
        assert (row.verb, row.subject) == ("release.evaluate", f"release {release}")
        assert row.detail["absent"] == {slow: why}
    assert len(asked(mute, 2, "evaluate")) == 2


def test_a_device_that_falls_silent_while_it_judges_is_not_waited_for_any_longer(
    quick: Fleet, mute: Mute
) -> None:
    silent = quick.devices.names[2]
    quick.policy(rounds=1)
    quick.released(1)
    quick.grid.wait(STATUS_EVERY_S - 10.0)
    mute.kinds |= {(2, "query.status"), (2, "evaluate")}
    order = quick.registry.orders.place("evaluate", {"release": 1}, actor=OPERATOR)
    began = quick.grid.clock()
    said = judged_in(quick, 1)
    assert quick.grid.clock() - began <= 10.0 + STATUS_S + BRIEF_S
    detail = "silent: online, but 1 time(s) in a row no answer within 30 s"
    assert (said["devices"], said["absent"]) == (2, 1)
    assert without_counts(quick, 1) == {silent: detail}
    done = quick.registry.orders.get(order.id)
    assert (done.state.value, done.result["absent"]) == ("done", 1)
    again = quick.registry.orders.place("evaluate", {"release": 0}, actor=OPERATOR)
    quick.steps(1)  # who is known to be silent is not asked
    assert quick.registry.orders.get(again.id).result["absent"] == 1
    assert without_counts(quick, 0) == {silent: detail}


def test_a_device_that_goes_away_while_it_judges_is_waited_for_a_little(
    quick: Fleet, mute: Mute
) -> None:
    away = quick.devices.names[2]
    quick.policy(rounds=1)
    quick.released(1)
    mute.kinds.add((2, "evaluate"))
    quick.registry.orders.place("evaluate", {"release": 1}, actor=OPERATOR)
    quick.steps(2)
    began = quick.grid.clock()
    quick.offline.add(2)
    said = judged_in(quick, 1)
    assert AWAY_S <= quick.grid.clock() - began <= AWAY_S + BRIEF_S
    assert said["absent"] == 1
    assert without_counts(quick, 1) == {away: f"offline: for {AWAY_S:g} s"}


def test_a_late_judgement_counts_while_others_are_waited_for(quick: Fleet, mute: Mute) -> None:
    quick.policy(rounds=1)
    quick.released(1)
    mute.kinds |= {(1, "evaluate"), (2, "evaluate")}
    quick.registry.orders.place("evaluate", {"release": 1}, actor=OPERATOR)
    quick.steps(40)
    assert quick.events("release.evaluated") == []
    mute.kinds.clear()
    said = judged_in(quick, 1)
    assert (said["devices"], said["absent"]) == (3, 0)
    assert without_counts(quick, 1) == {}


def test_a_device_that_is_revoked_or_fails_while_it_judges_has_no_counts(
    quick: Fleet, mute: Mute
) -> None:
    first, second, _ = quick.devices.names
    quick.policy(rounds=1)
    quick.released(1)
    mute.kinds.add((1, "evaluate"))

    def fails(message: Message, context: Context) -> Message:
        raise OSError("the sensor is gone")

    quick.devices.answers[first, "evaluate"] = fails
    quick.registry.orders.place("evaluate", {"release": 1}, actor=OPERATOR)
    quick.steps(2)
    quick.registry.devices.revoke(second, why="lost", actor=OPERATOR)
    said = judged_in(quick, 1)
    assert (said["devices"], said["absent"]) == (1, 2)
    absent = without_counts(quick, 1)
    assert absent.pop(first).startswith("failed: ")
    assert absent == {second: "revoked"}


def test_who_is_not_asked_to_judge_has_its_reason_in_the_audit(quick: Fleet, mute: Mute) -> None:
    first, second, away = quick.devices.names
    quick.policy(rounds=1)
    quick.released(1)
    quick.registry.devices.quarantine(first, why="lies", actor=OPERATOR)
    quick.registry.devices.revoke(second, why="lost", actor=OPERATOR)
    quick.offline.add(2)
    quick.registry.orders.place("evaluate", {"release": 1}, actor=OPERATOR)
    said = judged_in(quick, 1)
    assert (said["devices"], said["absent"]) == (0, 2)
    assert without_counts(quick, 1) == {first: "quarantined", away: "offline: when it began"}
    quick.offline.clear()
    claims = {"device": "somebody-else"}
    quick.devices.says[away] = claims
    quick.grid.wait(STATUS_EVERY_S)
    quick.registry.orders.place("evaluate", {"release": 0}, actor=OPERATOR)
    quick.steps(3)
    assert without_counts(quick, 0)[away].startswith("offline: the node says that it is 'somebody")


def test_of_very_many_without_counts_those_who_were_asked_are_kept_first(
    quick: Fleet, mute: Mute, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick.policy(rounds=1)
    quick.released(1)
    monkeypatch.setattr("server.registry.observations.LARGEST_ABSENT", 1)
    asked = quick.devices.names[2]
    mute.kinds.add((2, "evaluate"))
    quick.offline.add(0)
    order = quick.registry.orders.place("evaluate", {"release": 1}, actor=OPERATOR)
    assert judged_in(quick, 1)["absent"] == 2
    assert quick.registry.orders.get(order.id).result["absent"] == 2
    assert list(without_counts(quick, 1)) == [asked]
    assert quick.registry.audit.rows(subject="release 1")[-1].detail["unlisted"] == 1


def test_every_release_that_the_policy_wants_judged_waits_for_a_free_place(
    quick: Fleet, mute: Mute
) -> None:
    wanted = list(range(1, LARGEST_UNDER_WAY + 4))
    mute.kinds.add((2, "evaluate"))
    quick.policy(rounds=wanted[-1], evaluate_every=1, deadline_s=20.0)
    quick.released(wanted[-1])
    judged_in(quick, LARGEST_UNDER_WAY)
    judged_in(quick, wanted[-1])
    assert [each["release"] for each in quick.events("release.evaluated")] == wanted
    assert len(asked(mute, 2, "evaluate")) == len(wanted)
    assert quick.events("release.unjudged") == []


def test_of_more_releases_than_may_wait_to_be_judged_the_oldest_is_told_as_unjudged(
    quick: Fleet, mute: Mute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.standing.judging.LARGEST_UNDER_WAY", 1)
    monkeypatch.setattr("server.standing.judging.LARGEST_WANTED", 2)
    newest = 4
    mute.kinds.add((2, "evaluate"))
    quick.policy(rounds=newest, evaluate_every=1)
    quick.released(newest)
    quick.steps(2)
    (said,) = quick.events("release.unjudged")
    assert said["release"] == 2
    assert "at most 2" in said["why"]
    mute.kinds.clear()
    judged_in(quick, newest)
    kept = {each["release"] for each in quick.events("release.evaluated")}
    assert kept == {1, 3, 4}


def test_a_policy_that_wants_none_judged_any_more_ends_the_waiting(
    quick: Fleet, mute: Mute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.standing.judging.LARGEST_UNDER_WAY", 1)
    mute.kinds.add((2, "evaluate"))
    quick.policy(rounds=3, evaluate_every=1)
    quick.released(3)
    quick.steps(2)
    quick.policy(rounds=3, evaluate_every=0)
    quick.steps(2)
    mute.kinds.clear()
    quick.steps(4)
    assert [each["release"] for each in quick.events("release.evaluated")] == [1]
    quick.policy(rounds=3, evaluate_every=1)
    quick.steps(2)  # from now on: the newest, and what comes
    assert [each["release"] for each in quick.events("release.evaluated")] == [1, 3]


def test_orders_to_judge_wait_for_a_free_place_and_one_release_is_judged_once_at_a_time(
    quick: Fleet, mute: Mute
) -> None:
    quick.policy(rounds=LARGEST_UNDER_WAY)
    quick.released(LARGEST_UNDER_WAY)
    mute.kinds.add((2, "evaluate"))
    wanted = [0, *range(LARGEST_UNDER_WAY + 1)]
    place = quick.registry.orders.place
    orders = [place("evaluate", {"release": each}, actor=OPERATOR).id for each in wanted]
    quick.steps(2)
    states = [quick.registry.orders.get(each).state.value for each in orders]
    assert states == ["taken"] * (LARGEST_UNDER_WAY + 1) + ["waiting"]
    mute.kinds.clear()
    quick.steps(4)
    done = [quick.registry.orders.get(each) for each in orders]
    assert [each.result["devices"] for each in done] == [3] * len(wanted)
    assert len(asked(mute, 2, "evaluate")) == LARGEST_UNDER_WAY + 1


def test_more_devices_than_one_question_may_have_are_asked_one_after_the_other(
    quick: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick.policy(rounds=1)
    quick.released(1)
    monkeypatch.setattr("server.standing.questions.LARGEST_QUESTION", 2)
    order = quick.registry.orders.place("evaluate", {"release": 1}, actor=OPERATOR)
    quick.steps(4)
    assert quick.registry.orders.get(order.id).result["devices"] == 3
