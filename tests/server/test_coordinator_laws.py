from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.federate.admission import Reason
from fleet.federate.wire import Payload
from server import coordinator as c
from server.phases import ARROWS
from tests.fleet.federate.factories import LAYOUT, make_payload
from tests.server.coordinating import (
    DEVICES,
    answer,
    make_state,
    opened,
    reasons,
    record_of,
    take,
)

WAYS = {(arrow.start, arrow.end) for arrow in ARROWS}
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
            assert (before.phase, state.phase) in WAYS
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
