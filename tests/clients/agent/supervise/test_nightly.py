from __future__ import annotations

from datetime import date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.agent.supervise.nightly import (
    JITTER,
    LEAST_GAP_S,
    NightlyWear,
    Nights,
    night_of,
    nights_of,
    observe,
)
from fleet.supervise.ward import World

HOUR_S = 3600.0
DAY = timedelta(days=1)
NOON = datetime(2026, 11, 21, 12)


def made(at: str = "03:30", name: str = "kitchen-1") -> Nights:
    nights = nights_of(at, name)
    assert nights is not None
    return nights


def recycles(looks: list[tuple[datetime, float]], nights: Nights) -> list[tuple[date, float]]:
    """Look at wall clock and monotonic clock again and again; return when it was recycled."""
    found = []
    for now, now_s in looks:
        nights, due = observe(nights, now, now_s, is_up=True)
        if due:
            found.append((night_of(nights, now), now_s))
    return found


@given(
    name=st.text(max_size=9),
    at=st.sampled_from(["03:30", "00:00", "23:59"]),
    days=st.integers(1, 9),
)
def test_each_night_recycles_once_while_the_clock_runs_evenly(
    name: str, at: str, days: int
) -> None:
    hours = range(24 * days + 1)
    looks = [(NOON + timedelta(hours=hour), hour * HOUR_S) for hour in hours]
    nights = [night for night, _ in recycles(looks, made(at, name))]
    assert len(nights) == len(set(nights)) == days


@given(
    steps=st.lists(
        st.tuples(st.floats(0, 4 * 24), st.one_of(st.just(0.0), st.floats(-20_000, 20_000))),
        max_size=40,
    ),
    later=st.integers(1, 3),
)
def test_jumps_never_recycle_twice_in_a_night_and_never_end_the_recycling(
    steps: list[tuple[float, float]], later: int
) -> None:
    now, now_s, looks = NOON, 0.0, [(NOON, 0.0)]
    for hours, jump_h in steps:
        now_s += hours * HOUR_S
        now += timedelta(hours=hours + jump_h)
        looks.append((now, now_s))
    found = recycles(looks, made())
    times = [at_s for _, at_s in found]
    assert all(b - a >= LEAST_GAP_S for a, b in pairwise(times))
    # Whatever the clock did: once it runs evenly, the nights come again.
    for hour in range(1, 24 * (later + 1) + 1):
        looks.append((now + timedelta(hours=hour), now_s + hour * HOUR_S))
    assert len(recycles(looks, made())) - len(found) >= later


def test_a_clock_set_back_over_the_hour_does_not_recycle_again() -> None:
    nights = made()
    after = datetime(2026, 11, 22, 4, 20)
    looks = [(NOON, 0.0), (after, 16 * HOUR_S)]
    looks += [(after - timedelta(hours=2), 16.1 * HOUR_S), (after, 18.1 * HOUR_S)]
    assert len(recycles(looks, nights)) == 1


def test_a_clock_that_was_decades_ahead_does_not_stop_the_nights() -> None:
    ahead = NOON.replace(year=2099)
    looks = [(ahead, 0.0), (NOON, 60.0), (NOON + DAY, 24 * HOUR_S + 60)]
    assert recycles(looks, made()) == [(NOON.date() + DAY, 24 * HOUR_S + 60)]


def test_what_does_not_run_is_not_recycled_and_its_night_is_over() -> None:
    nights, _ = observe(made(), NOON, 0.0, is_up=True)
    nights, due = observe(nights, NOON + DAY, 24 * HOUR_S, is_up=False)
    assert not due
    nights, due = observe(nights, NOON + DAY, 25 * HOUR_S, is_up=True)
    assert not due
    assert observe(nights, NOON + 2 * DAY, 48 * HOUR_S, is_up=True)[1]


@given(st.text(max_size=20))
def test_the_jitter_is_the_devices_own_and_bounded(name: str) -> None:
    assert timedelta(0) <= made(name=name).jitter < JITTER
    assert made(name=name) == made(name=name)


def test_devices_do_not_restart_in_step() -> None:
    jitters = [made(name=f"kitchen-{number}").jitter for number in range(50)]
    assert max(jitters) - min(jitters) > JITTER / 2


def test_an_empty_time_is_never() -> None:
    assert nights_of("", "a") is None


@pytest.mark.parametrize(("hour", "night"), [(3, 20), (5, 21)])
def test_a_night_begins_at_its_time(hour: int, night: int) -> None:
    assert night_of(made(), datetime(2026, 11, 21, hour)) == date(2026, 11, night)


def test_a_night_wears_out_a_child_that_runs_once() -> None:
    hours = [12.0]
    world = World(
        lambda: hours[0] * HOUR_S,
        lambda: NOON + timedelta(hours=hours[0] - 12),
        lambda: 0.5,
    )
    wear = NightlyWear(made())
    assert wear.observe(world, is_up=True) == ""
    hours[0] += 24
    assert wear.observe(world, is_up=True) == "a night has passed"
    assert wear.observe(world, is_up=True) == ""
