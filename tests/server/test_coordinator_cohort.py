from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import InputError, TooFewDevices
from server import coordinator as c
from tests.server.coordinating import (
    DEVICES,
    START,
    make_rules,
    make_state,
    make_task,
)


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
