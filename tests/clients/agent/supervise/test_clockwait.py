from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

import pytest

from clients.agent.supervise.clockwait import ClockGate, judge_clock
from fleet.supervise.ward import World

SET = datetime(2026, 11, 21, tzinfo=timezone.utc)
UNSET = datetime(1970, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("now", "kept", "waited_s", "may_start", "doubt"),
    [
        (SET, True, 0.0, True, ""),
        (SET, None, 0.0, True, ""),
        (SET, False, 0.0, False, "NTP has not set"),
        (SET, False, 599.0, False, "NTP has not set"),
        (SET, False, 600.0, True, "NTP has not set"),
        (UNSET, True, 0.0, False, "1970-01-01"),
        (UNSET, None, 600.0, True, "never set"),
    ],
)
def test_the_supernode_starts_with_a_set_clock_or_after_the_wait(
    now: datetime, kept: bool | None, waited_s: float, may_start: bool, doubt: str
) -> None:
    verdict = judge_clock(now, kept, waited_s, 600.0)
    assert verdict.may_start is may_start
    assert bool(verdict.doubt) is bool(doubt)
    assert doubt in verdict.doubt


@dataclass
class Given:
    """Clocks that stand still until a test moves them."""

    seconds: float = 1000.0
    now: datetime = SET
    kept: bool | None = False

    def gate(self, limit_s: float) -> ClockGate:
        return ClockGate(limit_s, lambda: self.kept)

    def world(self) -> World:
        return World(lambda: self.seconds, lambda: self.now, lambda: 0.5)


def test_the_gate_opens_for_a_clock_that_is_set_meanwhile() -> None:
    given = Given(now=UNSET)
    gate, told = given.gate(600.0), []
    for _ in range(3):
        sight = gate.look(given.world())
        assert (sight.is_open, sight.next_s) == (False, 5.0)
        told.append(sight.event and sight.event[0])
        given.seconds += 5.0
    assert told == ["clock.waits", None, None]
    given.now, given.kept = SET, True
    sight = gate.look(given.world())
    assert (sight.is_open, sight.event and sight.event[0]) == (True, "clock.set")


def test_the_gate_opens_at_its_limit() -> None:
    given = Given()
    gate = given.gate(7.0)
    assert not gate.look(given.world()).is_open
    given.seconds += 5.0
    sight = gate.look(given.world())
    assert (sight.is_open, sight.next_s) == (False, 2.0)
    given.seconds += 2.0
    sight = gate.look(given.world())
    assert sight.is_open
    assert sight.event is not None
    assert sight.event[0] == "clock.given-up"
    assert "7 s" in sight.event[1]


def test_a_clock_that_is_set_is_not_told_of() -> None:
    sight = Given(kept=True).gate(600.0).look(Given().world())
    assert (sight.is_open, sight.event) == (True, None)
