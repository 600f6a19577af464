from __future__ import annotations

import itertools

import numpy as np
import pytest

from fleet.federate.admission import Reason
from fleet.federate.aggregate import PartialSum, quantise
from fleet.federate.releases import next_release
from server import coordinator as c
from tests.fleet.federate.factories import LAYOUT, make_payload
from tests.server.coordinating import (
    BASE,
    DEVICES,
    START,
    answer,
    flat_of,
    make_rules,
    make_state,
    opened,
    reasons,
    record_of,
    take,
)


def test_a_round_goes_from_idle_to_idle_along_the_documented_arrows() -> None:
    state = make_state()
    phases = [state.phase]
    state, (push,) = c.step(state, c.Fleet(0.0, DEVICES))
    assert isinstance(push, c.Push)
    assert (push.devices, push.release) == (DEVICES, START)
    phases.append(state.phase)
    state, none = c.step(state, c.Pushed(1.0))
    assert none == ()
    phases.append(state.phase)
    for device in DEVICES[:-1]:
        state, none = c.step(state, answer(state, device, 2.0))
        assert none == ()
    state, (publish,) = c.step(state, answer(state, DEVICES[-1], 3.0))
    assert isinstance(publish, c.Publish)
    assert publish.release is state.release
    phases.append(state.phase)
    state, none = c.step(state, c.Published(4.0))
    assert none == ()
    phases.append(state.phase)
    assert [phase.value for phase in phases] == [
        "idle",
        "planned",
        "collecting",
        "aggregating",
        "idle",
    ]
    assert (state.round, state.release.number) == (2, 1)


def test_the_run_ends_without_an_error_after_its_last_round() -> None:
    state = opened(rounds=1)
    state, effects = take(state, *(answer(state, device) for device in DEVICES), c.Published(2.0))
    assert state.phase is c.Phase.ended
    assert effects[-1] == c.End(None)


def test_the_plan_says_what_the_task_the_rules_and_the_release_say() -> None:
    state = opened()
    assert state.plan is not None
    wanted = {
        "round": 1,
        "base": BASE.digest,
        "frame": BASE.frame_digest,
        "layout": LAYOUT.digest,
        "release": 0,
        "state": START.state.digest,
        "deadline_s": 100.0,
        "method": "core",
        "optimiser": "sgd",
    }
    plan = state.plan.model_dump()
    assert {name: plan[name] for name in wanted} == wanted


def test_the_record_tells_who_was_asked_what_was_taken_and_when() -> None:
    state = opened(now=5.0, deadline_s=50.0)
    plan = state.plan
    state, effects = take(
        state,
        answer(state, "person-02", 6.0, examples=7, loss=0.25, steps=3),
        answer(state, "person-01", 7.0, examples=9),
        c.Failed(8.0, "person-03", "it is hot", Reason.declined),
        c.Tick(55.0),
    )
    record = record_of(effects)
    assert (record.round, record.plan, record.selected) == (1, plan, DEVICES)
    assert (record.opened_at_s, record.closed_at_s, record.released) == (5.0, 55.0, True)
    assert [taken["device"] for taken in record.accepted] == ["person-01", "person-02"]
    second = dict(record.accepted[1])
    assert (second["weight"], second["loss"], second["steps"]) == (7, 0.25, 3)
    assert second["norm"] == pytest.approx(float(np.linalg.norm(flat_of("person-02"))))
    assert reasons(record) == {"person-03": Reason.declined, "person-04": Reason.no_reply}
    assert record.refused[0].detail == "it is hot"
    provenance = dict(state.release.provenance)
    assert provenance["devices"] == {"person-01": 9, "person-02": 7}
    assert (provenance["round"], provenance["plan"]) == (1, plan.id if plan else "")


def test_the_release_is_the_parent_moved_by_the_weighted_mean_of_what_was_admitted() -> None:
    state = opened(DEVICES[:2])
    state, _ = take(
        state, answer(state, "person-01", examples=3), answer(state, "person-02", examples=5000)
    )
    wanted = PartialSum.empty(LAYOUT.size)
    wanted = wanted.add(quantise(flat_of("person-01")), 3)
    wanted = wanted.add(quantise(flat_of("person-02")), 4096)
    assert state.release.digest == next_release(START, wanted.mean(), {}).digest


def test_the_same_updates_in_any_order_give_the_same_release() -> None:
    digests = set()
    for order in itertools.permutations(DEVICES):
        state = opened()
        state, _ = take(state, *(answer(state, device) for device in order))
        digests.add(state.release.digest)
    assert len(digests) == 1


def test_a_hostile_update_leaves_the_release_that_the_others_make() -> None:
    honest = opened(DEVICES[:3])
    honest, _ = take(honest, *(answer(honest, device) for device in DEVICES[:3]))
    state = opened()
    assert state.plan is not None
    poison = make_payload(state.plan, np.full(LAYOUT.size, np.nan, np.float32), device="person-04")
    state, effects = take(
        state,
        c.Answered(1.0, "person-04", poison),
        *(answer(state, device) for device in DEVICES[:3]),
    )
    assert reasons(record_of(effects)) == {"person-04": Reason.not_finite}
    assert state.release.state.digest == honest.release.state.digest


def test_the_deadline_releases_what_has_come_when_the_quorum_is_met() -> None:
    state = opened(quorum=2)
    state, effects = take(state, answer(state, "person-01"), answer(state, "person-03"))
    assert effects == ()
    state, effects = c.step(state, c.Tick(99.9))
    assert effects == ()
    state, effects = c.step(state, c.Tick(100.0))
    assert state.phase is c.Phase.aggregating
    assert reasons(record_of(effects)) == dict.fromkeys(("person-02", "person-04"), Reason.no_reply)


def test_without_the_quorum_the_round_is_abandoned_and_tried_again() -> None:
    state = opened(quorum=2)
    plan = state.plan
    state, effects = take(state, answer(state, "person-01"), c.Tick(100.0))
    assert (state.phase, state.round, state.release) == (c.Phase.idle, 1, START)
    (publish,) = effects
    assert isinstance(publish, c.Publish)
    assert publish.release is None
    assert not publish.record.released
    state, (push,) = c.step(state, c.Fleet(101.0, DEVICES))
    assert isinstance(push, c.Push)
    assert push.plan == plan
    assert (state.accepted, state.refused) == ({}, ())


@pytest.mark.parametrize(("selected", "needed"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_the_quorum_is_half_of_the_cohort_if_none_is_given(selected: int, needed: int) -> None:
    assert make_rules().needed(selected) == needed
    assert make_rules(quorum=4).needed(selected) == 4


def abandon(state: c.State, now: float) -> c.Step:
    return take(state, c.Fleet(now, DEVICES), c.Pushed(now), c.Tick(now + 100))


def test_the_third_abandoned_round_in_a_row_ends_the_run() -> None:
    state = make_state()
    for attempt in range(2):
        state, (_, publish) = abandon(state, attempt * 200.0)
        assert isinstance(publish, c.Publish)
        assert state.phase is c.Phase.idle
    state, effects = abandon(state, 400.0)
    assert state.phase is c.Phase.ended
    _, publish, end = effects
    assert isinstance(publish, c.Publish)
    assert isinstance(end, c.End)
    assert end.error is not None
    assert end.error.code == "round-abandoned"
    assert "person-01: no-reply" in end.error.message


def test_a_release_in_between_lets_the_count_of_abandoned_rounds_start_anew() -> None:
    state = make_state(rounds=9)
    for start in (0.0, 200.0):
        state, _ = abandon(state, start)
    state, _ = take(state, c.Fleet(400.0, DEVICES), c.Pushed(400.0))
    state, _ = take(state, *(answer(state, device, 401.0) for device in DEVICES))
    state, _ = c.step(state, c.Published(402.0))
    for start in (500.0, 700.0):
        state, _ = abandon(state, start)
    assert state.phase is c.Phase.idle
