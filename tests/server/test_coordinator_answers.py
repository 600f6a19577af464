from __future__ import annotations

import pytest

from fleet.federate.admission import Reason
from server import coordinator as c
from server import draft
from tests.server.coordinating import (
    DEVICES,
    answer,
    make_state,
    opened,
    reasons,
    record_of,
    take,
)


def test_a_late_answer_is_recorded_as_late_and_closes_the_round() -> None:
    state = opened(DEVICES[:2], quorum=1)
    state, effects = take(state, answer(state, "person-01"), answer(state, "person-02", 100.0))
    assert reasons(record_of(effects)) == {"person-02": Reason.late}
    assert state.phase is c.Phase.aggregating


def test_an_answer_to_an_earlier_round_is_noted_and_the_device_may_answer_this_one() -> None:
    state = opened(DEVICES[:2])
    late = c.Late(1.0, "person-01", "answered round 0, 9 s after it had closed")
    state, _ = c.step(state, late)
    assert (state.refused, len(state.unanswered)) == ((), 2)
    state, effects = take(state, *(answer(state, device) for device in DEVICES[:2]))
    record = record_of(effects)
    assert [a["device"] for a in record.accepted] == list(DEVICES[:2])
    assert [(r.device, r.reason, r.detail) for r in record.late] == [
        ("person-01", Reason.late, late.detail)
    ]


def test_late_answers_are_noted_up_to_a_bound_and_only_while_a_round_is_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draft, "LARGEST_STRAY_ANSWERS", 2)
    late = c.Late(1.0, "person-01", "x" * 10_000)
    state, _ = c.step_all(opened(), [late] * 5)
    assert len(state.late) == 2
    assert len(state.late[0].detail) <= draft.LARGEST_DETAIL
    idle = make_state()
    assert c.step(idle, late) == (idle, ())


def test_a_second_answer_of_a_device_is_recorded_and_changes_nothing_else() -> None:
    state = opened(DEVICES[:2])
    once, _ = c.step(state, answer(state, "person-01"))
    twice, _ = c.step(once, answer(state, "person-01", examples=99))
    assert twice.accepted == once.accepted
    assert [r.reason for r in twice.refused] == [Reason.duplicate]


def test_answers_that_nobody_waits_for_are_recorded_up_to_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(draft, "LARGEST_STRAY_ANSWERS", 2)
    state = opened()
    stray = [answer(state, f"stranger-{n}") for n in range(10)]
    state, _ = take(state, *stray)
    assert len(state.refused) == len(state.selected) + 2
    last, effects = take(state, *(answer(state, device) for device in state.selected))
    assert record_of(effects).released
    assert set(last.accepted) == set(state.selected)


def test_a_refused_device_does_not_get_a_second_try() -> None:
    state = opened(DEVICES[:2])
    state, _ = take(state, answer(state, "person-01", examples=0), answer(state, "person-01"))
    assert state.accepted == {}
    assert [r.reason for r in state.refused] == [Reason.implausible_examples, Reason.duplicate]


def test_an_answer_of_a_device_that_was_not_asked_is_recorded() -> None:
    state = opened(DEVICES[:2])
    state, _ = c.step(state, answer(state, "person-04"))
    assert [(r.device, r.reason) for r in state.refused] == [("person-04", Reason.unselected)]
    assert state.accepted == {}


def test_a_device_cannot_answer_in_the_name_of_another() -> None:
    state = opened(DEVICES[:2])
    state, _ = c.step(state, answer(state, "person-01", device="person-02"))
    assert [(r.device, r.reason) for r in state.refused] == [("person-01", Reason.wrong_device)]


def test_the_text_of_a_refusal_is_bounded() -> None:
    state = opened(DEVICES[:2])
    state, _ = c.step(state, c.Failed(1.0, "person-01", "x" * 10**6))
    assert len(state.refused[0].detail) == draft.LARGEST_DETAIL


def test_an_answer_to_the_plan_of_the_round_before_is_refused() -> None:
    state = opened()
    stale = [answer(state, device) for device in DEVICES]
    state, _ = take(state, *stale, c.Published(2.0), c.Fleet(3.0, DEVICES), c.Pushed(3.0))
    state, _ = c.step(state, stale[0])
    assert [r.reason for r in state.refused] == [Reason.wrong_plan]
