from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fleet.supervise.restarts import (
    Asked,
    Backoff,
    Course,
    Ended,
    Event,
    Phase,
    Started,
    delay_s,
    step,
)

BACKOFF = Backoff(least_s=1.0, first_s=4.0, longest_s=30.0, steady_s=60.0)
QUICK = Backoff(least_s=0.5, first_s=2.0, longest_s=60.0, steady_s=60.0)
PATIENT = Backoff(least_s=1.0, first_s=5.0, longest_s=90.0, steady_s=120.0)
DRAWS = st.floats(0, 1, exclude_max=True)
LEAST = 0.0
MOST = 0.999999


def crash_after(course: Course, up_s: float, draw: float = MOST) -> Course:
    started = step(course, Started(), course.due_s, BACKOFF)
    return step(started, Ended("exit code 1", draw), course.due_s + up_s, BACKOFF)


@given(
    failures=st.integers(1, 10**6),
    draw=DRAWS,
    backoff=st.sampled_from([BACKOFF, QUICK, PATIENT]),
)
def test_every_delay_is_within_its_limits(failures: int, draw: float, backoff: Backoff) -> None:
    delay = delay_s(failures, draw, backoff)
    assert backoff.least_s <= delay <= backoff.longest_s
    assert delay <= max(backoff.first_s * 2.0 ** min(failures - 1, 60), backoff.least_s)


def test_the_limit_doubles_up_to_the_longest_and_chance_takes_any_part_of_it() -> None:
    longest = [round(delay_s(n, MOST, BACKOFF)) for n in range(1, 7)]
    assert longest == [4, 8, 16, 30, 30, 30]
    assert [delay_s(n, LEAST, BACKOFF) for n in (1, 6)] == [1.0, 1.0]


def test_a_child_that_was_steady_has_recovered() -> None:
    course = Course()
    for _ in range(4):
        course = crash_after(course, 1.0)
    assert course.failures == 4
    assert crash_after(course, 59.0).failures == 5
    recovered = crash_after(course, 60.0)
    assert recovered.failures == 1
    assert recovered.due_s - recovered.since_s < BACKOFF.first_s
    assert (recovered.restarts, recovered.starts) == (5, 5)


def test_an_end_that_was_asked_for_is_no_failure_and_needs_no_delay() -> None:
    course = step(crash_after(Course(), 1.0), Started(), 100.0, BACKOFF)
    course = step(step(course, Asked(), 200.0, BACKOFF), Ended("exit code 0", 0.5), 205.0, BACKOFF)
    assert course.phase is Phase.WAITING
    assert course.may_start(205.0)
    assert (course.failures, course.restarts, course.recycles) == (0, 1, 1)


def test_a_start_that_fails_waits_like_a_crash() -> None:
    course = step(Course(), Ended("cannot be started", LEAST), 5.0, BACKOFF)
    assert not course.may_start(5.9)
    assert course.may_start(6.0)


def test_the_latest_reasons_are_kept() -> None:
    course = Course()
    for number in range(9):
        course = step(course, Started(), course.due_s, BACKOFF)
        course = step(course, Ended(f"exit code {number}", 0.5), course.due_s, BACKOFF)
    assert course.reasons == tuple(f"exit code {number}" for number in range(4, 9))


@pytest.mark.parametrize(
    ("course", "event"),
    [
        (Course(due_s=10.0), Started()),
        (Course(phase=Phase.UP), Started()),
        (Course(phase=Phase.STOPPING), Started()),
        (Course(), Asked()),
        (Course(phase=Phase.STOPPING), Asked()),
        (Course(due_s=10.0), Ended("x", 0.5)),
    ],
)
def test_what_cannot_happen_is_refused(course: Course, event: Event) -> None:
    with pytest.raises(ValueError, match="cannot happen"):
        step(course, event, 9.0, BACKOFF)


@pytest.mark.parametrize("values", [(0, 1, 2, 3), (2, 1, 3, 3), (1, 3, 2, 3), (1, 2, 3, -1)])
def test_delays_that_contradict_each_other_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="do not hold"):
        Backoff(*values)


@dataclass
class History:
    starts: list[float] = field(default_factory=list)
    crashes: list[float] = field(default_factory=list)


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens to a child, and whenever."""

    def __init__(self) -> None:
        super().__init__()
        self.course, self.now_s, self.seen = Course(), 0.0, History()

    @rule(seconds=st.floats(0, 200))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds

    @precondition(lambda self: self.course.may_start(self.now_s))
    @rule()
    def it_starts(self) -> None:
        # The law: after a crash there is a delay, whatever else happened.
        if self.seen.crashes:
            assert self.now_s - self.seen.crashes[-1] >= BACKOFF.least_s * 0.999
        self.course = step(self.course, Started(), self.now_s, BACKOFF)
        self.seen.starts.append(self.now_s)

    @precondition(lambda self: self.course.phase is not Phase.WAITING)
    @rule(draw=DRAWS)
    def it_ends(self, draw: float) -> None:
        if self.course.phase is Phase.UP:
            self.seen.crashes.append(self.now_s)
        self.course = step(self.course, Ended("x", draw), self.now_s, BACKOFF)

    @precondition(lambda self: self.course.phase is Phase.UP)
    @rule()
    def it_is_recycled(self) -> None:
        self.course = step(self.course, Asked(), self.now_s, BACKOFF)

    @invariant()
    def it_is_counted_and_never_waits_too_long(self) -> None:
        course = self.course
        assert course.starts == len(self.seen.starts)
        assert course.restarts == len(self.seen.crashes)
        if course.phase is Phase.WAITING:
            assert course.due_s - course.since_s <= BACKOFF.longest_s


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=40)
