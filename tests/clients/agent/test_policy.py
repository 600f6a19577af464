from __future__ import annotations

import json
import logging
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.agent.decisions import DecisionLog
from clients.agent.policy import Decision, Policy, Refusal, in_hours, may_train
from clients.agent.power.readings import Readings

NOON = datetime(2026, 11, 21, 12, 0)
GOOD = Readings(
    temperature_c=40.0,
    battery_percent=90.0,
    on_mains=True,
    metered=False,
    new_labels=5,
    trained_today_s=0.0,
)
PERCENT = st.floats(0, 100)
CELSIUS = st.floats(-40, 150)
READINGS = st.builds(
    Readings,
    temperature_c=st.none() | CELSIUS,
    battery_percent=st.none() | PERCENT,
    on_mains=st.none() | st.booleans(),
    metered=st.none() | st.booleans(),
    new_labels=st.none() | st.integers(0, 10),
    trained_today_s=st.none() | st.floats(0, 86_400),
    rounds_left=st.none() | st.integers(0, 3),
)
POLICIES = st.builds(
    Policy,
    max_temperature_c=st.floats(0, 120),
    hysteresis_c=st.floats(0, 40),
    only_on_mains=st.booleans(),
    min_battery_percent=PERCENT,
    allowed_hours=st.sampled_from([(), ("22:00-06:00",), ("11:00-13:00", "00:00-01:00")]),
    metered_network=st.sampled_from(["auto", "yes", "no"]),
    allow_metered=st.booleans(),
    max_training_s_per_day=st.floats(0, 86_400),
    unknown=st.sampled_from(["allow", "refuse"]),
)
MINUTES = st.integers(0, 24 * 60 - 1)


def reasons(policy: Policy, readings: Readings, now: datetime = NOON) -> set[str]:
    return {reason.value for reason in may_train(policy, readings, now).reasons}


def test_a_device_in_good_order_may_train() -> None:
    decision = may_train(Policy(), GOOD, NOON)
    assert decision == Decision(True, (), GOOD, NOON, ())


@pytest.mark.parametrize(
    ("policy", "change", "reason"),
    [
        (Policy(), {"temperature_c": 75.1}, "too-hot"),
        (Policy(min_battery_percent=0), {"on_mains": False}, "on-battery"),
        (Policy(only_on_mains=False), {"on_mains": False, "battery_percent": 29.9}, "low-battery"),
        (Policy(allowed_hours=("22:00-06:00",)), {}, "outside-hours"),
        (Policy(), {"metered": True}, "metered"),
        (Policy(metered_network="yes"), {"metered": False}, "metered"),
        (Policy(), {"new_labels": 0}, "no-new-labels"),
        (Policy(), {"rounds_left": 0}, "no-drift"),
        (Policy(max_training_s_per_day=60), {"trained_today_s": 60.0}, "over-budget"),
        (Policy(unknown="refuse"), {"temperature_c": None}, "no-reading"),
    ],
)
def test_each_rule_refuses_with_its_own_code(
    policy: Policy, change: dict[str, object], reason: str
) -> None:
    assert reasons(policy, replace(GOOD, **change)) == {reason}  # type: ignore[arg-type]


def test_all_reasons_are_told_at_once() -> None:
    bad = Readings(
        90.0, 5.0, False, metered=True, new_labels=0, trained_today_s=99.0, rounds_left=0
    )
    policy = Policy(allowed_hours=("22:00-06:00",), max_training_s_per_day=10)
    assert reasons(policy, bad) == {reason.value for reason in Refusal} - {"no-reading"}


def test_a_board_on_a_wall_plug_without_sensors_may_train_unless_told_otherwise() -> None:
    bare = Readings(temperature_c=40.0, new_labels=1)
    decision = may_train(Policy(), bare, NOON)
    assert decision.allowed
    assert decision.unknown == ("on_mains", "battery_percent", "metered")
    assert reasons(Policy(unknown="refuse"), bare) == {"no-reading"}


def test_a_network_that_the_operator_knows_needs_no_sensor() -> None:
    bare = replace(GOOD, metered=None)
    assert may_train(Policy(metered_network="no"), bare, NOON).unknown == ()


def test_after_a_refusal_for_heat_the_device_cools_by_the_hysteresis_first() -> None:
    policy = Policy(max_temperature_c=75, hysteresis_c=5)
    hot = may_train(policy, replace(GOOD, temperature_c=76.0), NOON)
    warm = may_train(policy, replace(GOOD, temperature_c=72.0), NOON, hot)
    cool = may_train(policy, replace(GOOD, temperature_c=70.0), NOON, warm)
    again = may_train(policy, replace(GOOD, temperature_c=72.0), NOON, cool)
    assert [hot.allowed, warm.allowed, cool.allowed, again.allowed] == [False, False, True, True]


@given(policy=POLICIES, readings=READINGS, less=CELSIUS, more=CELSIUS, was_hot=st.booleans())
def test_a_hotter_device_is_never_allowed_more(
    policy: Policy, readings: Readings, less: float, more: float, was_hot: bool
) -> None:
    less, more = sorted((less, more))
    before = Decision(False, (Refusal.TOO_HOT,), readings, NOON) if was_hot else None
    cooler, hotter = (
        may_train(policy, replace(readings, temperature_c=t), NOON, before) for t in (less, more)
    )
    assert set(cooler.reasons) <= set(hotter.reasons)
    assert cooler.allowed or not hotter.allowed


@given(policy=POLICIES, readings=READINGS, less=PERCENT, more=PERCENT)
def test_a_fuller_battery_never_forbids_more(
    policy: Policy, readings: Readings, less: float, more: float
) -> None:
    less, more = sorted((less, more))
    emptier, fuller = (
        may_train(policy, replace(readings, battery_percent=p), NOON) for p in (less, more)
    )
    assert set(fuller.reasons) <= set(emptier.reasons)


@given(policy=POLICIES, readings=READINGS, before=st.none() | READINGS)
def test_hysteresis_only_ever_refuses_more(
    policy: Policy, readings: Readings, before: Readings | None
) -> None:
    previous = may_train(policy, before, NOON) if before is not None else None
    fresh, after = may_train(policy, readings, NOON), may_train(policy, readings, NOON, previous)
    assert set(fresh.reasons) <= set(after.reasons)


@given(policy=POLICIES, readings=READINGS)
def test_a_decision_is_allowed_exactly_when_no_rule_refuses_and_keeps_what_it_read(
    policy: Policy, readings: Readings
) -> None:
    decision = may_train(policy, readings, NOON)
    assert decision.allowed is (not decision.reasons)
    assert decision.readings is readings
    assert decision == may_train(policy, readings, NOON)
    assert list(decision.reasons) == [each for each in Refusal if each in decision.reasons]
    json.dumps(decision.record(), allow_nan=False)


@given(policy=POLICIES, readings=READINGS)
def test_allowing_the_unknown_never_refuses_more(policy: Policy, readings: Readings) -> None:
    lax, strict = (
        may_train(policy.model_copy(update={"unknown": how}), readings, NOON)
        for how in ("allow", "refuse")
    )
    assert set(lax.reasons) | {Refusal.NO_READING} >= set(strict.reasons) >= set(lax.reasons)


@given(minute=MINUTES, start=MINUTES, end=MINUTES)
def test_a_span_and_its_complement_share_no_minute_and_leave_none_out(
    minute: int, start: int, end: int
) -> None:
    if start == end:
        return
    now = NOON.replace(hour=minute // 60, minute=minute % 60)
    one, other = (f"{t // 60:02d}:{t % 60:02d}" for t in (start, end))
    assert in_hours((f"{one}-{other}",), now) is not in_hours((f"{other}-{one}",), now)


@pytest.mark.parametrize(
    ("clock", "inside"), [("21:59", False), ("22:00", True), ("05:59", True), ("06:00", False)]
)
def test_a_span_may_pass_midnight(clock: str, inside: bool) -> None:
    hour, minute = map(int, clock.split(":"))
    assert in_hours(("22:00-06:00",), NOON.replace(hour=hour, minute=minute)) is inside


def test_every_decision_is_written_with_its_readings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    decision = may_train(Policy(), replace(GOOD, temperature_c=99.0), NOON)
    with caplog.at_level(logging.DEBUG, "clients.agent.decisions"):
        log.write(decision)
    assert "policy.decided" in caplog.text
    record = log.last()
    assert record is not None
    assert record["reasons"] == ["too-hot"]
    assert record["readings"]["temperature_c"] == 99.0
    assert record["at"] == "2026-11-21T12:00:00"


def test_the_log_of_decisions_stays_within_its_cap_and_keeps_the_newest(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl", cap_bytes=4000)
    for celsius in range(60):
        log.write(may_train(Policy(), replace(GOOD, temperature_c=float(celsius)), NOON))
        assert log.path.stat().st_size <= 4000
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines[-1]["readings"]["temperature_c"] == 59.0
    assert len(lines) > 2


def test_a_line_that_a_power_cut_broke_is_passed_over(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "decisions.jsonl")
    assert log.last() is None
    log.write(may_train(Policy(), GOOD, NOON))
    with open(log.path, "a") as file:
        file.write('{"event": "poli')
    assert (log.last() or {})["allowed"] is True


def test_a_log_that_cannot_be_written_is_a_warning_and_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DecisionLog(tmp_path).write(may_train(Policy(), GOOD, NOON))
    assert "could not be written" in caplog.text
