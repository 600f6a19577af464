from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import InputError, TooFewDevices
from fleet.federate.admission import Reason
from fleet.federate.aggregate import PartialSum, quantise
from fleet.federate.releases import next_release
from fleet.federate.wire import Payload
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
    make_task,
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


@pytest.mark.parametrize(
    "rules", [{"minimum": 3}, {"cohort": 3}, {"cohort": 3, "quorum": 3}, {"quorum": 3}]
)
def test_too_few_devices_end_the_run_once_the_wait_is_over(rules: dict[str, int]) -> None:
    state = make_state(**rules)
    for now in (10.0, 20.0, 39.9):
        state, effects = c.step(state, c.Fleet(now, DEVICES[:2]))
        assert (effects, state.phase) == ((), c.Phase.idle)
    state, (end,) = c.step(state, c.Fleet(40.0, DEVICES[:2]))
    assert state.phase is c.Phase.ended
    assert isinstance(end, c.End)
    assert isinstance(end.error, TooFewDevices)
    assert (end.error.code, end.error.exit_code) == ("too-few-devices", 3)
    assert "2 usable" in end.error.message
    assert "30 s" in end.error.message
    assert "needs 3" in end.error.message


def test_a_device_that_comes_during_the_wait_opens_the_round_and_ends_the_wait() -> None:
    state = make_state(minimum=3)
    state, _ = c.step(state, c.Fleet(0.0, DEVICES[:2]))
    state, effects = c.step(state, c.Fleet(29.0, DEVICES[:3]))
    assert isinstance(effects[0], c.Push)
    assert state.waiting_since is None


def test_an_empty_fleet_opens_no_round_even_if_no_minimum_is_given() -> None:
    state, effects = c.step(make_state(minimum=0), c.Fleet(0.0, ()))
    assert (state.phase, effects) == (c.Phase.idle, ())


def selected(seed: int, devices: tuple[str, ...], round_number: int = 1) -> tuple[str, ...]:
    rules = make_rules(cohort=3, seed=seed, rounds=99)
    state = c.begin(rules, make_task(), START, round_number=round_number)
    return c.step(state, c.Fleet(0.0, devices))[0].selected


@given(st.integers(0, 1000), st.permutations([f"person-{n:02d}" for n in range(8)]))
def test_the_cohort_depends_on_seed_and_round_and_not_on_the_order_of_devices(
    seed: int, devices: list[str]
) -> None:
    chosen = selected(seed, tuple(devices))
    assert chosen == selected(seed, tuple(sorted(devices)))
    assert len(set(chosen)) == 3
    assert set(chosen) <= set(devices)


def test_cohorts_differ_between_rounds_and_seeds_and_reach_everyone() -> None:
    devices = tuple(f"person-{n:02d}" for n in range(8))
    by_round = [selected(0, devices, number) for number in range(1, 30)]
    by_seed = [selected(seed, devices) for seed in range(30)]
    assert len(set(by_round)) > 5
    assert len(set(by_seed)) > 5
    assert {device for cohort in by_round for device in cohort} == set(devices)


def test_a_cohort_of_all_or_more_takes_everyone() -> None:
    for cohort in (0, 4):
        state, _ = c.step(make_state(cohort=cohort), c.Fleet(0.0, DEVICES[::-1]))
        assert state.selected == DEVICES


def test_a_quorum_that_no_cohort_can_reach_is_refused_at_once() -> None:
    with pytest.raises(InputError) as refused:
        make_rules(cohort=2, quorum=3)
    assert refused.value.code == "quorum-above-cohort"


ARROWS = {
    ("idle", "planned"),
    ("idle", "ended"),
    ("planned", "collecting"),
    ("collecting", "aggregating"),
    ("collecting", "idle"),
    ("collecting", "ended"),
    ("aggregating", "idle"),
    ("aggregating", "ended"),
}
names = st.sampled_from([*DEVICES, "stranger"])
happenings = st.lists(
    st.tuples(
        st.sampled_from(["fleet", "pushed", "answer", "hostile", "failed", "tick", "published"]),
        st.sets(names, max_size=5),
        names,
        st.floats(0, 60),
    ),
    max_size=40,
)


def event_of(kind: str, group: set[str], name: str, now: float, state: c.State) -> c.Event:
    if kind == "fleet":
        return c.Fleet(now, tuple(group))
    if kind == "failed":
        return c.Failed(now, name, "gone")
    if kind == "hostile" or (kind == "answer" and state.plan is None):
        return c.Answered(now, name, Payload(np.zeros(0, np.float32), {}))
    if kind == "answer":
        return answer(state, name, now)
    return {"pushed": c.Pushed, "tick": c.Tick, "published": c.Published}[kind](now)


@settings(max_examples=150, deadline=None)
@given(happenings, st.integers(0, 3), st.integers(0, 3))
def test_any_sequence_of_events_keeps_the_invariants(
    events: list[tuple[str, set[str], str, float]], cohort: int, quorum: int
) -> None:
    state, now = make_state(cohort=cohort, quorum=min(cohort, quorum), rounds=3), 0.0
    for count, (kind, group, name, later) in enumerate(events, start=1):
        before, now = state, now + later
        state, effects = c.step(before, event_of(kind, group, name, now, before))
        if before.phase is not state.phase:
            assert (before.phase.value, state.phase.value) in ARROWS
        assert set(state.accepted) <= set(state.selected)
        final = {r.device for r in state.refused if r.reason is not Reason.duplicate}
        assert not final & set(state.accepted)
        assert len(state.refused) <= count + len(state.selected)
        assert 1 <= state.round <= 3
        assert state.release.number <= state.round
        assert state.abandoned <= c.LARGEST_ABANDONED_IN_A_ROW
        for record in (e.record for e in effects if isinstance(e, c.Publish)):
            accounted = {a["device"] for a in record.accepted} | set(reasons(record))
            assert set(record.selected) <= accounted


def in_phase(phase: c.Phase) -> c.State:
    planned, _ = c.step(make_state(rounds=1), c.Fleet(0.0, DEVICES))
    collecting, _ = c.step(planned, c.Pushed(0.0))
    aggregating, _ = take(collecting, *(answer(collecting, device) for device in DEVICES))
    ended, _ = c.step(aggregating, c.Published(2.0))
    states = (make_state(rounds=1), planned, collecting, aggregating, ended)
    return {state.phase: state for state in states}[phase]


PLACES = {
    c.Phase.idle: {"fleet"},
    c.Phase.planned: {"pushed"},
    c.Phase.collecting: {"answer", "hostile", "failed", "tick"},
    c.Phase.aggregating: {"published"},
    c.Phase.ended: set[str](),
}


@pytest.mark.parametrize("phase", list(c.Phase))
def test_an_event_that_has_no_place_changes_nothing(phase: c.Phase) -> None:
    state = in_phase(phase)
    kinds = {"fleet", "pushed", "answer", "hostile", "failed", "tick", "published"}
    for kind in sorted(kinds - PLACES[phase]):
        event = event_of(kind, set(DEVICES), DEVICES[0], 1e9, state)
        assert c.step(state, event) == (state, ())
    for kind in sorted(PLACES[phase]):
        event = event_of(kind, set(DEVICES), DEVICES[0], 1e9, state)
        assert c.step(state, event) != (state, ())


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["answer", "poison", "fail", "tick", "fleet"]),
        st.sampled_from([*DEVICES, "stranger"]),
        st.floats(0, 150),
    ),
    max_size=12,
)


@given(EVENTS, st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_events_that_come_together_end_where_one_after_the_other_ends(
    drawn: list[tuple[str, str, float]], cut: int
) -> None:
    state = opened()
    events: list[c.Event] = []
    for kind, device, now in sorted(drawn, key=lambda each: each[2]):
        if kind == "answer":
            events.append(answer(state, device, now))
        elif kind == "poison":
            assert state.plan is not None
            payload = make_payload(state.plan, np.full(LAYOUT.size, np.nan, np.float32))
            events.append(c.Answered(now, device, payload))
        elif kind == "fail":
            events.append(c.Failed(now, device, "it failed"))
        else:
            events.append(c.Tick(now) if kind == "tick" else c.Fleet(now, DEVICES))
    one_by_one, effects = take(state, *events)
    half, first = c.step_all(state, events[:cut])
    together, rest = c.step_all(half, events[cut:])
    assert (together.phase, together.unanswered) == (one_by_one.phase, one_by_one.unanswered)
    assert together.refused == one_by_one.refused
    assert list(together.accepted) == list(one_by_one.accepted)
    assert together.release.digest == one_by_one.release.digest
    assert [type(each) for each in first + rest] == [type(each) for each in effects]
    assert [record_of((e,)) for e in first + rest if isinstance(e, c.Publish)] == [
        record_of((e,)) for e in effects if isinstance(e, c.Publish)
    ]
