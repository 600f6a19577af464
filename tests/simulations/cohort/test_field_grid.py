"""The cohort grid before devices of a trace, through the real coordinator."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import RoundError
from fleet.federate.admission import Reason
from fleet.federate.releases import first_release
from fleet.federate.wire import Payload
from server import coordinator as c
from server.flower import ErrorCode
from server.rounds import Shell
from simulations.cohort import grid as module
from simulations.cohort.grid import CohortGrid
from simulations.traces.availability import Always, Diurnal
from simulations.traces.field import Fate, Field
from simulations.traces.trace import DeviceClass, Faults, Trace
from tests.fleet.federate.factories import LAYOUT, make_base
from tests.simulations.cohort.fake_fleet import CLASSES, FakeFleet, Kept, name, run
from tests.simulations.cohort.test_grid import make_plan, to_all

DEVICES = 12
HOUR = 3600.0
ALWAYS = Always(kind="always", source="a test")
NIGHTS = Diurnal(kind="diurnal", source="a test", starts_h=2, hours=1)
MORNINGS = Diurnal(kind="diurnal", source="a test", starts_h=0, hours=1)


def made(share: float = 1.0, **changes: float) -> DeviceClass:
    values = {
        "train_windows_per_s": math.inf,
        "judge_windows_per_s": math.inf,
        "down_bytes_per_s": math.inf,
        "up_bytes_per_s": math.inf,
        "latency_s": 0.0,
    }
    return DeviceClass(name="d", share=share, source="a test", **{**values, **changes})


def field_of(*classes: DeviceClass, when: Always | Diurnal = ALWAYS, **faults: float) -> Field:
    wrong = Faults(source="a test", **faults)
    return Field(
        Trace(about="a test", availability=(when,), device=classes or (made(),), faults=wrong), 0
    )


class Chosen(Field):
    """A field in which devices differ by their number."""

    def __init__(
        self, classes: Mapping[int, DeviceClass], fates: Mapping[int, Fate] | None = None
    ) -> None:
        super().__init__(field_of().trace, 0)
        self.classes, self.fates = classes, fates or {}

    def class_of(self, partition: int) -> DeviceClass:
        return self.classes.get(partition, made())

    def fate(self, partition: int, message: str) -> Fate:
        kind = message.split("/")[0]
        fate = self.fates.get(partition) if kind == "train" else None
        return fate or Fate(lost=False, doubled=False)


def rounds(
    grid: CohortGrid, *, minimum: int = DEVICES, number: int = 2, deadline_s: float = 60.0
) -> tuple[Kept, Shell]:
    kept = Kept()
    task = c.Task("core", 2, LAYOUT, "sgd", 0.1, 0.9, 1, 32, 4096, 0)
    rules = c.Rules(rounds=number, minimum=minimum, deadline_s=deadline_s, wait_s=30 * HOUR)
    shell = Shell(
        grid, grid.clock, grid.wait, kept, "core", weigh=grid.weigh, classes=CLASSES, look_s=60.0
    )
    shell.run(c.begin(rules, task, first_release(make_base(), "core", LAYOUT)))
    return kept, shell


def pulled(grid: CohortGrid, ids: list[str], seconds: float) -> list[tuple[float, Message]]:
    """Pull once a second; return each reply with its moment."""
    found: list[tuple[float, Message]] = []
    while grid.clock() < seconds:
        while replies := grid.pull_messages(ids):
            found += [(grid.clock(), each) for each in replies]
        grid.wait(1.0)
    return found


def test_devices_that_are_always_there_and_take_no_time_end_as_without_a_trace() -> None:
    expected = run(CohortGrid(FakeFleet(), DEVICES, at_once=5), minimum=DEVICES)
    grid = CohortGrid(FakeFleet(), DEVICES, at_once=5, field=field_of())
    found = run(grid, minimum=DEVICES)
    assert [r.digest for r in found.releases] == [r.digest for r in expected.releases]
    assert found.evaluations == expected.evaluations
    assert found.traffic == expected.traffic
    assert grid.clock() == 0.0


def test_answers_that_come_one_by_one_end_in_the_same_release() -> None:
    expected = run(CohortGrid(FakeFleet(), DEVICES), minimum=DEVICES)
    slow = {n: made(train_windows_per_s=9 / (1 + 3 * n)) for n in range(DEVICES)}
    fleet = FakeFleet()
    found, _ = rounds(CohortGrid(fleet, DEVICES, at_once=5, field=Chosen(slow)))
    assert [r.digest for r in found.releases] == [r.digest for r in expected.releases]
    # Nine windows each: the last device takes 34 s, and a look a second sees it then.
    assert found.records[0].closed_at_s - found.records[0].opened_at_s == 34
    trained = [partitions for kind, partitions in fleet.calls if kind == "train"]
    assert [len(each) for each in trained] == [5, 5, 2, 5, 5, 2]


def test_an_answer_is_there_when_it_is_due_by_hand_and_not_before() -> None:
    kind = made(
        train_windows_per_s=3.0, down_bytes_per_s=1000.0, up_bytes_per_s=500.0, latency_s=0.5
    )
    grid = CohortGrid(FakeFleet(), 1, field=field_of(kind))
    asked = to_all(grid, ttl=600)
    ids = grid.push_messages(asked)
    down = grid.weigh(asked[0])
    ((moment, reply),) = pulled(grid, ids, 60)
    up = grid.weigh(reply)
    due = 0.5 + down / 1000 + 9 / 3.0 + 0.5 + up / 500
    assert due > 8
    assert moment == math.ceil(due)


def test_a_message_to_a_device_that_is_offline_waits_for_it() -> None:
    grid = CohortGrid(FakeFleet(), 2, field=field_of(when=MORNINGS))
    messages = to_all(grid, ttl=30 * HOUR)
    grid.wait(2 * HOUR)
    ids = grid.push_messages(messages)
    assert grid.get_node_ids() == []
    assert grid.pull_messages(ids) == []
    grid.wait(22 * HOUR - 1)
    assert grid.pull_messages(ids) == []
    grid.wait(1)
    assert all(each.has_content() for each in grid.pull_messages(ids))


def test_a_message_that_expires_first_is_answered_by_the_server_and_trains_nobody() -> None:
    fleet = FakeFleet()
    grid = CohortGrid(fleet, 2, field=field_of(when=MORNINGS))
    messages = to_all(grid, ttl=HOUR)
    grid.wait(2 * HOUR)
    ids = grid.push_messages(messages)
    grid.wait(HOUR - 1)
    assert grid.pull_messages(ids) == []
    grid.wait(1)
    codes = [each.error.code for each in grid.pull_messages(ids)]
    assert codes == [ErrorCode.MESSAGE_UNAVAILABLE] * 2
    assert {kind for kind, _ in fleet.calls} == {"status"}


def test_a_straggler_is_silent_at_the_deadline_then_recorded_late_and_never_counted() -> None:
    # 9 windows at 9 / 70 per second take 70 s of a round of 60; the message lives for 120.
    slow = {3: made(train_windows_per_s=9 / 70)}
    found, _ = rounds(CohortGrid(FakeFleet(), DEVICES, field=Chosen(slow)), number=3)
    first, second = found.records[:2]
    assert [(r.device, r.reason) for r in first.refused] == [(name(3), Reason.no_reply)]
    assert first.closed_at_s - first.opened_at_s == 60
    assert len(first.accepted) == DEVICES - 1
    (late,) = second.late
    assert (late.device, late.reason) == (name(3), Reason.late)
    assert late.detail == "answered round 1, 10 s after it had closed"
    expected = run_without(3)
    assert [r.digest for r in found.releases] == [r.digest for r in expected.releases][:3]


def run_without(partition: int) -> Kept:
    lost = {partition: Fate(lost=True, doubled=False)}
    return rounds(CohortGrid(FakeFleet(), DEVICES, field=Chosen({}, lost)), number=3)[0]


def test_a_lost_message_is_a_device_without_a_reply_and_trains_nobody() -> None:
    fleet = FakeFleet()
    lost = {5: Fate(lost=True, doubled=True)}
    found, _ = rounds(CohortGrid(fleet, DEVICES, field=Chosen({}, lost)))
    for record in found.records:
        assert [(r.device, r.reason) for r in record.refused] == [(name(5), Reason.no_reply)]
        assert record.late == ()
    assert all(5 not in partitions for kind, partitions in fleet.calls if kind == "train")


def test_an_answer_that_comes_twice_is_recorded_as_a_duplicate_and_counted_once() -> None:
    doubled = {2: Fate(lost=False, doubled=True)}
    grid = CohortGrid(FakeFleet(), DEVICES, field=Chosen({}, doubled))
    found, _ = rounds(grid)
    expected = run(CohortGrid(FakeFleet(), DEVICES), minimum=DEVICES)
    assert [r.digest for r in found.releases] == [r.digest for r in expected.releases]
    for record in found.records:
        assert [(r.device, r.reason) for r in record.refused] == [(name(2), Reason.duplicate)]
        assert len(record.accepted) == DEVICES
    # Two copies crossed the wire in each of two rounds.
    assert grid.ledger["train"].messages_up == 2 * (DEVICES + 1)


def test_a_copy_of_an_answer_does_not_disturb_who_sends_and_receives() -> None:
    grid = CohortGrid(FakeFleet(), 3, field=field_of(doubled=1.0))
    replies = grid.send_and_receive(to_all(grid))
    assert len(replies) == 6
    assert len({r.metadata.message_id for r in replies}) == 6


def test_a_round_waits_for_the_night_and_then_for_nobody() -> None:
    grid = CohortGrid(FakeFleet(), DEVICES, field=field_of(when=NIGHTS))
    found, _ = rounds(grid)
    assert found.records[0].opened_at_s == 2 * HOUR
    assert len(found.records[1].accepted) == DEVICES


def test_too_few_devices_end_the_run_after_the_simulated_wait() -> None:
    grid = CohortGrid(FakeFleet(), DEVICES, field=field_of(when=NIGHTS))
    with pytest.raises(RoundError) as ended:
        rounds(grid, minimum=DEVICES + 1)
    assert ended.value.code == "too-few-devices"
    assert grid.clock() == pytest.approx(30 * HOUR, abs=61)


def test_an_answer_is_made_only_when_somebody_asks_for_one_that_has_set_out() -> None:
    fleet = FakeFleet()
    grid = CohortGrid(fleet, DEVICES, field=field_of(made(latency_s=5.0)))
    ids = grid.push_messages(to_all(grid, ttl=600))
    assert grid.pull_messages(ids) == []
    grid.wait(10)
    assert grid.pull_messages([]) == []
    assert [kind for kind, _ in fleet.calls if kind == "train"] == []
    assert len(grid.pull_messages(ids)) == DEVICES


def test_messages_that_nobody_pulls_are_forgotten_when_they_have_expired(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED_MESSAGES", 3 * DEVICES)
    grid = CohortGrid(FakeFleet(), DEVICES, field=field_of(made(latency_s=5.0)))
    for number in range(10):
        ids = grid.push_messages(to_all(grid, make_plan(1 + number), ttl=60))
        grid.wait(6 if number % 2 else 12)
        assert len(grid.pull_messages(ids[:3])) in (0, 3)
        grid.wait(60)
    assert len(grid._under_way) <= DEVICES
    assert len(grid._schedule or ()) == len(grid._under_way)


seconds = st.floats(0.01, 100)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(seconds, seconds, seconds), min_size=2, max_size=6),
    st.integers(1, 3),
    st.floats(0, 3),
)
def test_nothing_is_delivered_before_it_is_due_nor_twice_and_all_that_comes_in_time_is(
    times: list[tuple[float, float, float]], at_once: int, latency: float
) -> None:
    classes = {
        n: made(
            train_windows_per_s=9 / work,
            down_bytes_per_s=2000 / down,
            up_bytes_per_s=2000 / up,
            latency_s=latency,
        )
        for n, (work, down, up) in enumerate(times)
    }
    field = Chosen(classes)
    grid = CohortGrid(FakeFleet(), len(times), at_once=at_once, field=field)
    asked = to_all(grid, ttl=200)
    ids = grid.push_messages(asked)
    down = grid.weigh(asked[0])
    found = pulled(grid, ids, 199)
    came = {r.metadata.reply_to_message_id: (moment, r) for moment, r in found}
    assert len(came) == len(found)
    for message_id, message in zip(ids, asked, strict=True):
        kind = classes[grid._single.partition_of(message)]
        due = latency + down / kind.down_bytes_per_s + 9 / kind.train_windows_per_s + latency
        if message_id not in came:
            # No answer of a fake device weighs more.
            assert due + 3000 / kind.up_bytes_per_s > 197
            continue
        moment, reply = came[message_id]
        due += grid.weigh(reply) / kind.up_bytes_per_s
        assert due - 1e-6 <= moment < due + 1 + 1e-6


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(DEVICES)))
def test_the_order_in_which_devices_answer_does_not_change_the_release(order: list[int]) -> None:
    slow = {n: made(train_windows_per_s=9 / (1 + at)) for at, n in enumerate(order)}
    found, _ = rounds(CohortGrid(FakeFleet(), DEVICES, at_once=4, field=Chosen(slow)), number=1)
    expected = run(CohortGrid(FakeFleet(), DEVICES), minimum=DEVICES, rounds=1)
    assert found.releases[-1].digest == expected.releases[-1].digest


class _Unsure(FakeFleet):
    def status(self, partition: int) -> Payload:
        raise ValueError("no status")


def test_a_fleet_that_cannot_tell_its_windows_works_in_no_time() -> None:
    grid = CohortGrid(_Unsure(), 2, field=field_of(made(train_windows_per_s=0.001)))
    ids = grid.push_messages(to_all(grid))
    assert len(grid.pull_messages(ids)) == 2
