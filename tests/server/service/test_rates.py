from __future__ import annotations

import io
import json
from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.service.front.events import LINES_AT_ONCE, SHOWN, Events
from server.service.front.rates import Rates, neighbourhood


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    rates = Rates(2.0, 3, clock)
    assert [rates.take("a") for _ in range(4)] == [True, True, True, False]
    assert rates.take("b")
    clock.seconds += 0.5
    assert [rates.take("a") for _ in range(2)] == [True, False]
    clock.seconds += 3600
    assert [rates.take("a") for _ in range(4)] == [True, True, True, False]


def test_what_is_larger_than_what_is_left_takes_nothing() -> None:
    clock = Clock()
    rates = Rates(1.0, 10, clock)
    assert [rates.take("a", count) for count in (7, 4, 3, 1)] == [True, False, True, False]
    clock.seconds += 5
    assert [rates.take("a", count) for count in (6, 5, 0)] == [False, True, True]


@given(st.lists(st.floats(0, 5), max_size=60), st.floats(0.1, 10), st.integers(1, 10))
def test_no_more_is_given_than_burst_and_rate_allow(
    pauses: list[float], per_s: float, burst: int
) -> None:
    clock = Clock()
    rates = Rates(per_s, burst, clock)
    given_ = 0
    for pause in pauses:
        clock.seconds += pause
        given_ += rates.take("a")
    assert given_ <= burst + per_s * clock.seconds + 1e-6


def test_buckets_are_bounded_and_the_oldest_goes() -> None:
    rates = Rates(0.001, 1, Clock(), most=2)
    assert rates.take("a")
    assert rates.take("b")
    assert rates.take("c")
    assert len(rates) == 2
    assert not rates.take("b")
    assert rates.take("a")


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("strange", "strange"),
    ],
)
def test_an_ipv6_network_is_one_caller(address: str, key: str) -> None:
    assert neighbourhood(address) == key


def test_a_flood_of_events_is_counted_instead_of_written() -> None:
    clock, stream = Clock(), io.StringIO()
    events = Events(stream, clock, lambda: datetime(2026, 1, 1, tzinfo=timezone.utc))
    for _ in range(int(LINES_AT_ONCE) + 50):
        events.tell("front.refused", target="x" * 10_000)
    clock.seconds += 1
    events.tell("front.refused")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == LINES_AT_ONCE + 1
    assert lines[-1]["left_out"] == 50
    assert len(lines[0]["target"]) == SHOWN


def test_nobody_has_to_read_the_events() -> None:
    stream = io.StringIO()
    stream.close()
    Events(stream, Clock(), lambda: datetime.now(timezone.utc)).tell("front.ready")
