"""Rounds of the standing service: whose, when, and in which release they end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message

from fleet.federate.admission import Reason
from fleet.measure.f1 import macro_f1
from server.registry.records import RoundState
from server.standing import planning
from server.standing.service import BEAT_S
from tests.server.registry.filled import OPERATOR
from tests.server.running import Setting
from tests.server.standing.standing import Fleet, update


def test_rounds_end_in_the_release_that_a_simulation_ends_in(
    fleet: Fleet, setting: Setting
) -> None:
    kept = setting.run(setting.grid(), rounds=2)
    fleet.policy()
    digests = fleet.released(2)
    assert digests[1:] == [release.digest for release in kept.releases]
    fleet.steps(5)
    assert len(fleet.registry.rounds.all()) == 2  # as many as the policy wants
    assert fleet.registry.replay(2).same


def test_the_policys_guards_are_the_plans(quick: Fleet) -> None:
    quick.policy(rounds=1, anchor=0.1, ewc=2.0, distil=0.5)
    quick.run(lambda: bool(quick.registry.rounds.all()))
    plan = quick.registry.rounds.get(1).plan
    assert (plan.anchor, plan.ewc, plan.distil) == (0.1, 2.0, 0.5)
    task = planning._task_of(plan, planning.Bench(quick.registry).layout(plan.method, plan.base))
    assert (task.anchor, task.ewc, task.distil) == (0.1, 2.0, 0.5)


def test_the_policys_compression_is_the_plans(quick: Fleet) -> None:
    quick.policy(rounds=1, compression="int4")
    quick.run(lambda: bool(quick.registry.rounds.all()))  # these devices know none, and say so
    row = quick.registry.rounds.get(1)
    assert row.plan.compression == "int4"
    reasons = {each.reason for each in quick.registry.rounds.refusals(1)}
    assert reasons == {Reason("wrong-encoding")}


def test_a_drawn_cohort_is_the_one_that_a_simulation_draws(quick: Fleet, setting: Setting) -> None:
    kept = setting.run(setting.grid(), rounds=2, cohort=2, minimum=2)
    quick.policy(cohort=2, quorum=2, minimum=2)
    quick.released(2)
    rows = quick.registry.rounds.all()
    assert [row.selected for row in rows] == [record.selected for record in kept.records]
    for row in rows:
        absent = quick.registry.rounds.absences(row.round)
        assert {*row.selected, *absent} == set(quick.devices.names)
        assert [each.reason for each in absent.values()] == ["not-drawn"]


def test_without_a_policy_nothing_is_opened_and_it_says_so(quick: Fleet) -> None:
    quick.steps(8)
    assert quick.registry.rounds.all() == ()
    assert quick.events("round.waiting") == [{"why": "there is no policy: fleet policy set"}]
    beat = quick.registry.observations.heartbeat()
    assert beat is not None
    assert (beat.pid, beat.version) == (7, "test")
    assert "policy" in beat.doing["waiting"]
    assert "next" not in beat.doing


def test_the_heartbeat_goes_on_while_a_round_is_open(quick: Fleet) -> None:
    quick.policy(quorum=2, minimum=2, rounds=1, deadline_s=60.0)
    beats = []

    def leave(message: Message, context: Context) -> Message:
        quick.offline.add(2)
        return update(message, quick.devices.names[0])

    def wait(seconds: float) -> None:
        quick.grid.wait(seconds)
        beats.append(quick.registry.observations.heartbeat())

    quick.devices.answers[quick.devices.names[0], "train"] = leave
    quick.start(wait=wait)
    quick.released(1)
    times = [each.alive_at_s for each in beats if each and each.doing["phase"] == "collecting"]
    assert len(set(times)) >= 60.0 / BEAT_S - 2


def lost(message: Message, context: Context) -> Message:
    raise OSError("the sensor is gone")


def test_the_pause_between_rounds_is_the_policys(quick: Fleet) -> None:
    quick.policy(every_s=20.0)
    quick.run(lambda: len(quick.registry.releases.all()) > 2, steps=60)
    first, second = quick.registry.rounds.all()
    assert first.closed is not None
    assert 20.0 <= second.opened.at_s - first.closed.at_s <= 23.0


def test_a_round_is_opened_on_order_alone_where_the_policy_has_no_pace(quick: Fleet) -> None:
    quick.policy(every_s=0.0)
    quick.steps(3)
    assert quick.registry.rounds.all() == ()
    order = quick.registry.orders.place("start_round", actor=OPERATOR)
    quick.released(1)
    done = quick.registry.orders.get(order.id)
    assert (done.state.value, done.result) == ("done", {"round": 1, "attempt": 1})
    assert quick.registry.rounds.get(1).opened.by == OPERATOR
    quick.steps(3)
    assert len(quick.registry.rounds.all()) == 1


def test_an_order_that_cannot_be_carried_out_fails_with_the_reason(quick: Fleet) -> None:
    quick.offline.add(0)
    quick.policy(every_s=0.0)
    start = quick.registry.orders.place("start_round", actor=OPERATOR)
    abort = quick.registry.orders.place("abort_round", {"reason": "x"}, actor=OPERATOR)
    quick.steps(2)
    assert quick.registry.orders.get(abort.id).error == "no round is open"
    why = quick.registry.orders.get(start.id).error
    assert why.startswith("round 1 needs 3 eligible device(s), 2 are (")
    assert f"{quick.devices.names[0]}: offline" in why
    assert why.endswith("; next: fleet device list")
    quick.steps(8)  # the heartbeat is told every five seconds
    beat = quick.registry.observations.heartbeat()
    assert beat is not None
    assert beat.doing["why"] == "on order only"


def test_an_order_that_fails_for_a_revoked_device_names_the_list_that_has_it(quick: Fleet) -> None:
    quick.registry.devices.revoke(quick.devices.names[0], why="lost", actor=OPERATOR)
    quick.policy(every_s=0.0)
    order = quick.registry.orders.place("start_round", actor=OPERATOR)
    quick.steps(2)
    why = quick.registry.orders.get(order.id).error
    assert why.endswith(f"({quick.devices.names[0]}: revoked); next: fleet device list --all")


def test_an_order_for_a_base_that_is_not_installed_fails_with_the_next_step(quick: Fleet) -> None:
    quick.policy(every_s=0.0, base="c" * 64)
    order = quick.registry.orders.place("start_round", actor=OPERATOR)
    quick.steps(2)
    assert quick.registry.orders.get(order.id).error == (
        "the base cccccccccccc… is not installed; next: Install it: fleet base install FILE"
    )


def test_an_aborted_round_ends_with_the_operators_reason_and_the_next_attempt_follows(
    quick: Fleet,
) -> None:
    quick.policy(rounds=1)
    away = quick.devices.names[2]

    def leave(message: Message, context: Context) -> Message:
        quick.offline.add(2)
        quick.registry.orders.place("abort_round", {"reason": "wrong base"}, actor=OPERATOR)
        return update(message, quick.devices.names[0])

    quick.devices.answers[quick.devices.names[0], "train"] = leave
    quick.run(lambda: bool(quick.registry.rounds.all()))
    row = quick.registry.rounds.get(1)
    assert (row.state, row.attempt) == (RoundState.abandoned, 1)
    assert row.closed is not None
    assert row.closed.why == f"aborted by {OPERATOR}: wrong base"
    reasons = {each.device: each.detail for each in quick.registry.rounds.refusals(1)}
    assert reasons[away] == "the round was aborted"
    assert quick.registry.orders.all()[-1].result == {"round": 1}
    quick.devices.answers.clear()
    quick.offline.clear()
    quick.released(1)
    assert quick.registry.rounds.get(1).attempt == 2


def test_too_few_answers_abandon_the_round_and_the_next_attempt_starts_afresh(
    quick: Fleet,
) -> None:
    quick.policy(rounds=1, deadline_s=30.0)
    device = quick.devices.names[1]
    quick.devices.answers[device, "train"] = lost
    quick.run(lambda: bool(quick.registry.rounds.all()))
    row = quick.registry.rounds.get(1)
    assert row.state is RoundState.abandoned
    assert row.closed is not None
    assert "2 update(s) accepted" in row.closed.why
    (refusal,) = quick.registry.rounds.refusals(1)
    assert (refusal.device, refusal.reason) == (device, Reason.failed)
    quick.devices.answers.clear()
    quick.released(1)
    assert [r.state for r in quick.registry.rounds.all()][1] is RoundState.released


def test_a_device_that_goes_away_gets_its_plan_again_when_it_is_back(quick: Fleet) -> None:
    quick.policy(rounds=1, deadline_s=300.0)
    device = quick.devices.names[2]

    def leave(message: Message, context: Context) -> Message:
        quick.offline.add(2)
        return update(message, quick.devices.names[1])

    quick.devices.answers[quick.devices.names[1], "train"] = leave

    def come_back(seconds: float) -> None:
        quick.grid.wait(seconds)
        if quick.grid.clock() > 60:
            quick.offline.discard(2)

    quick.start(wait=come_back)
    quick.released(1)
    assert quick.grid.clock() > 60
    assert quick.events("round.lost") == []  # nobody pulled its message while it was away
    updates = [each.device for each in quick.registry.rounds.updates(1)]
    assert device in updates
    assert len(updates) == 3


def test_with_over_selection_the_round_closes_at_its_quorum(quick: Fleet) -> None:
    quick.policy(quorum=2, over_select=1, minimum=2, rounds=1)
    quick.released(1)
    assert len(quick.registry.rounds.updates(1)) == 2
    (left,) = quick.registry.rounds.refusals(1)
    assert (left.reason, left.detail) == (Reason.no_reply, "the round had enough updates")


def test_a_device_over_its_bytes_of_the_day_waits_for_the_next_day(quick: Fleet) -> None:
    quick.policy(minimum=2, quorum=2, bytes_per_device_day=50_000, rounds=0)
    heavy = quick.devices.names[0]
    quick.registry.observations.spend({heavy: 49_999})
    quick.released(1)
    absent = quick.registry.rounds.absences(1)
    assert {name: each.reason for name, each in absent.items()} == {heavy: "byte-budget"}
    assert quick.registry.observations.spent()[quick.devices.names[1]] > 0
    quick.grid.wait(86_400.0)
    quick.released(2)
    assert quick.registry.rounds.absences(2) == {}


def test_a_bad_update_is_refused_with_its_reason_and_the_round_goes_on(quick: Fleet) -> None:
    quick.policy(quorum=2, rounds=1)
    liar = quick.devices.names[1]

    def lie(message: Message, context: Context) -> Message:
        return update(message, "somebody-else")

    quick.devices.answers[liar, "train"] = lie
    quick.released(1)
    (refusal,) = quick.registry.rounds.refusals(1)
    assert (refusal.device, refusal.reason) == (liar, Reason.wrong_device)
    assert quick.events("update.refused")[0]["reason"] == "wrong-device"


def test_a_release_is_judged_by_the_devices_when_the_policy_says_so(fleet: Fleet) -> None:
    fleet.policy(evaluate_every=2)
    fleet.run(lambda: bool(fleet.events("release.evaluated")))
    assert fleet.registry.observations.evaluation(1) == {}
    counts = fleet.registry.observations.evaluation(2)
    assert sorted(counts) == sorted(fleet.devices.names)
    (said,) = fleet.events("release.evaluated")
    pooled = macro_f1(np.sum([np.array(each) for each in counts.values()], axis=0))
    assert said == {"release": 2, "devices": 3, "macro_f1": round(pooled, 6), "absent": 0}


def test_an_ordered_evaluation_says_what_came_of_it(quick: Fleet) -> None:
    quick.policy(rounds=1)
    quick.released(1)
    order = quick.registry.orders.place("evaluate", {"release": 0}, actor=OPERATOR)
    quick.steps(1)
    done = quick.registry.orders.get(order.id)
    assert done.result["devices"] == 3
    assert done.taken is not None
    assert sorted(quick.registry.observations.evaluation(0)) == sorted(quick.devices.names)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"method": "head"}, "the policy has method head"),
        ({"rank": 3}, "the policy trains rank 3"),
        ({"base": "c" * 64}, "the base cccccccccccc… is not installed"),
    ],
)
def test_a_policy_for_another_fleet_is_told_and_opens_nothing(
    quick: Fleet, changes: dict[str, Any], code: str
) -> None:
    quick.policy(rounds=1)
    quick.released(1)
    quick.policy(rounds=2, **changes)
    quick.steps(8)  # the heartbeat is told every five seconds
    assert quick.events("round.waiting")[-1]["why"].startswith(code)
    beat = quick.registry.observations.heartbeat()
    assert beat is not None
    assert beat.doing["next"]
    assert len(quick.registry.rounds.all()) == 1
