"""Evaluations: nobody waits for them, and everybody without counts has a reason."""

from __future__ import annotations

from typing import Any

import pytest
from flwr.app import Context, Message

from server.standing.judging import AWAY_S, LARGEST_UNDER_WAY, LONGEST_EVALUATION_S
from server.standing.nodes import STATUS_EVERY_S, STATUS_S
from tests.server.registry.filled import OPERATOR
from tests.server.standing.mute import BRIEF_S, Mute, asked
from tests.server.standing.standing import Fleet


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
