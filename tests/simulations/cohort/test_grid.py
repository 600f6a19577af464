from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from fleet.adapt.state import CoreState
from fleet.errors import InputError, MismatchError, RoundError, StorageError
from fleet.federate.records import Plan
from fleet.federate.wire import Payload, encode_plan
from server.flower import ErrorCode, wire_bytes
from server.messages import content_of
from simulations.cohort import grid as module
from simulations.cohort.grid import CohortGrid
from simulations.inprocess import InProcessGrid
from tests.fleet.federate.factories import LAYOUT, make_base
from tests.simulations.cohort.fake_fleet import FakeFleet, name, refusals, run

DEVICES = 12


def make_plan(number: int = 1) -> RecordDict:
    base = make_base()
    state = CoreState.zero(LAYOUT)
    plan = Plan(
        round=number,
        base=base.digest,
        frame=base.frame_digest,
        layout=LAYOUT.digest,
        release=number - 1,
        state=state.digest,
        method="core",
        rank=2,
        epochs=1,
        batch=32,
        optimiser="sgd",
        learning_rate=0.1,
        momentum=0.9,
        seed=0,
        weight_cap=4096,
        deadline_s=60,
    )
    return content_of(encode_plan(plan, state))


def to_all(
    grid: CohortGrid, content: RecordDict | None = None, kind: str = "train", ttl: float = 60
) -> list[Message]:
    content = content or make_plan()
    return [Message(content, n, kind, ttl=ttl, group_id="1") for n in grid.get_node_ids()]


def both(
    devices: int = DEVICES, *, offline: Sequence[int] = (), **fleet: object
) -> tuple[InProcessGrid, CohortGrid]:
    one, two = FakeFleet(**fleet), FakeFleet(**fleet)  # type: ignore[arg-type]
    absent = frozenset(offline).__contains__
    return (
        InProcessGrid(one.app(), devices, offline=absent),
        CohortGrid(two, devices, offline=absent, at_once=5),
    )


def test_rounds_end_in_the_same_releases_evaluations_and_bytes_as_over_the_real_wire() -> None:
    slow, fast = both()
    expected, found = run(slow, minimum=DEVICES), run(fast, minimum=DEVICES)
    assert [r.digest for r in found.releases] == [r.digest for r in expected.releases]
    assert found.evaluations == expected.evaluations
    assert found.traffic == expected.traffic
    assert fast.ledger == slow.ledger
    assert sorted(found.answers) == sorted(expected.answers)


def test_faulty_devices_are_refused_for_the_same_reasons() -> None:
    faults = {
        1: lambda: MismatchError("wrong-base", "another base"),
        2: lambda: RoundError("training-diverged", "NaN"),
        3: lambda: ValueError("broken"),
        4: lambda: StorageError("torn-file", "a file is torn"),
    }
    slow, fast = both(faults=faults)
    expected, found = run(slow, minimum=DEVICES), run(fast, minimum=DEVICES)
    assert [refusals(r) for r in found.records] == [refusals(r) for r in expected.records]
    assert [r.digest for r in found.releases] == [r.digest for r in expected.releases]
    assert fast.ledger == slow.ledger


def test_offline_and_unusable_devices_are_left_out_alike() -> None:
    slow, fast = both(15, offline=[0, 7])
    expected, found = run(slow, minimum=12), run(fast, minimum=12)
    assert [r.digest for r in found.releases] == [r.digest for r in expected.releases]
    assert found.records[0].selected == expected.records[0].selected
    assert name(13) not in found.records[0].selected
    assert fast.ledger == slow.ledger


def test_the_size_of_a_call_does_not_matter() -> None:
    digests = {
        run(CohortGrid(FakeFleet(), DEVICES, at_once=n), minimum=DEVICES).releases[-1].digest
        for n in (1, 5, 100)
    }
    assert len(digests) == 1


def test_a_call_is_for_devices_of_one_plan_and_never_for_too_many() -> None:
    fleet = FakeFleet()
    grid = CohortGrid(fleet, DEVICES, at_once=5)
    ids = grid.push_messages(to_all(grid))
    ids += grid.push_messages(to_all(grid, make_plan(2)))
    sizes = []
    while replies := grid.pull_messages(ids):
        sizes.append(len(replies))
    assert sizes == [5, 5, 2, 5, 5, 2]
    assert len({id(message) for message in fleet.seen}) == 2


def test_equal_plans_of_several_pushes_go_together() -> None:
    fleet = FakeFleet()
    grid = CohortGrid(fleet, DEVICES)
    ids = [i for each in to_all(grid) for i in grid.push_messages([each])]
    node = grid.get_node_ids()[0]
    ids += grid.push_messages([Message(make_plan(), node, "train", ttl=9, group_id="2")])
    assert len(grid.pull_messages(ids)) == DEVICES + 1


def test_a_pull_answers_only_what_was_asked_for() -> None:
    grid = CohortGrid(FakeFleet(), DEVICES)
    ids = grid.push_messages(to_all(grid))
    replies = grid.pull_messages(ids[3:5])
    assert [r.metadata.reply_to_message_id for r in replies] == ids[3:5]
    assert grid.pull_messages(["unknown"]) == []


def test_the_fleet_cannot_change_what_it_is_given_nor_what_it_gave() -> None:
    fleet = FakeFleet()
    grid = CohortGrid(fleet, 1)
    (asked,) = to_all(grid)
    (reply,) = grid.send_and_receive([asked])
    (given,) = fleet.seen
    with pytest.raises(ValueError, match="read-only"):
        given.array[0] = 1.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        given.array.flags.writeable = True
    with pytest.raises(TypeError):
        given.config["plan"] = "another"  # type: ignore[index]
    reply.content.config_records["config"]["device"] = "changed by the server"
    (again,) = grid.send_and_receive(to_all(grid))
    assert again.content.config_records["config"]["device"] == name(0)


def test_what_the_server_changes_after_a_push_reaches_no_device() -> None:
    fleet = FakeFleet()
    grid = CohortGrid(fleet, 1)
    content = make_plan()
    (asked,) = to_all(grid, content)
    ids = grid.push_messages([asked])
    content.config_records["config"]["plan"] = "changed"
    del content["arrays"]
    asked.metadata.dst_node_id = 5
    (reply,) = grid.pull_messages(ids)
    assert reply.has_content()
    assert fleet.seen[0].config["plan"] != "changed"
    assert fleet.seen[0].array.size == LAYOUT.size


class _Hoarder(FakeFleet):
    """Changes an update after it gave it away."""

    def train(self, message: Payload, partitions: Sequence[int]) -> list[Payload | Exception]:
        array, config = np.zeros(LAYOUT.size, np.float32), {"device": "first"}
        self.mine = (array, config)
        return [Payload(array, config) for _ in partitions]


def test_what_the_fleet_changes_after_its_answer_reaches_no_server() -> None:
    fleet = _Hoarder()
    grid = CohortGrid(fleet, 2)
    first, second = grid.send_and_receive(to_all(grid))
    array, config = fleet.mine
    array += 1
    config["device"] = "second"
    assert first.content.config_records["config"]["device"] == "first"
    assert not first.content.array_records["arrays"]["packed"].numpy().any()
    assert first.content is not second.content


def test_an_expired_message_is_answered_with_an_error_and_asks_nobody() -> None:
    fleet = FakeFleet()
    grid = CohortGrid(fleet, 3)
    ids = grid.push_messages(to_all(grid, ttl=10))
    grid.wait(10)
    replies = grid.pull_messages(ids)
    assert {r.error.code for r in replies} == {ErrorCode.MESSAGE_UNAVAILABLE}
    assert [r.metadata.reply_to_message_id for r in replies] == ids
    assert fleet.calls == []
    assert grid.ledger["train"].messages_up == 0


def test_a_device_that_went_offline_is_answered_for() -> None:
    sleeping: set[int] = set()
    fleet = FakeFleet()
    grid = CohortGrid(fleet, 3, offline=sleeping.__contains__)
    ids = grid.push_messages(to_all(grid))
    sleeping.add(1)
    replies = grid.pull_messages(ids)
    assert [r.error.code for r in replies if r.has_error()] == [ErrorCode.NODE_UNAVAILABLE]
    assert sorted(fleet.calls[0][1]) == [0, 2]
    assert len(grid.get_node_ids()) == len(grid.get_nodes()) == 2


def test_a_full_disk_ends_the_run() -> None:
    full = {2: lambda: StorageError("disk-full", "no space left")}
    grid = CohortGrid(FakeFleet(full), 3)
    with pytest.raises(StorageError):
        grid.send_and_receive(to_all(grid))


class _Broken(FakeFleet):
    def train(self, message: Payload, partitions: Sequence[int]) -> list[Payload | Exception]:
        raise KeyboardInterrupt if partitions == [0] else ValueError("everybody fails")

    def evaluate(self, message: Payload, partitions: Sequence[int]) -> list[np.ndarray | Exception]:
        return []


def test_an_exception_of_a_call_is_everybodys_and_an_interrupt_passes_through() -> None:
    grid = CohortGrid(_Broken(), 2)
    replies = grid.send_and_receive(to_all(grid))
    assert all("everybody fails" in str(r.error.reason) for r in replies)
    replies = grid.send_and_receive(to_all(grid, kind="evaluate"))
    assert all("0 answers of 2 devices" in str(r.error.reason) for r in replies)
    lonely = CohortGrid(_Broken(), 1)
    with pytest.raises(KeyboardInterrupt):
        lonely.send_and_receive(to_all(lonely))


def test_other_messages_go_to_the_client_app_over_the_real_wire() -> None:
    grid = CohortGrid(FakeFleet(), 2, app=FakeFleet().app())
    odd = RecordDict({"other": ConfigRecord({"x": 1})})
    for kind in ("train.unregistered", "train", "query"):
        replies = grid.send_and_receive(to_all(grid, odd, kind))
        assert {r.metadata.message_type for r in replies} == {kind}
    assert grid.ledger["train"].messages_down == 4


def test_wire_bytes_are_those_of_flower() -> None:
    grid = CohortGrid(FakeFleet(), 3)
    asked = to_all(grid)
    replies = grid.send_and_receive(asked)
    assert grid.ledger["train"].bytes_down == sum(wire_bytes(each).total for each in asked)
    assert grid.ledger["train"].bytes_up == sum(wire_bytes(each).total for each in replies)
    assert [grid.weigh(each) for each in replies] == [wire_bytes(r).total for r in replies]


def test_the_clock_is_simulated_and_a_timeout_that_is_over_pulls_nothing() -> None:
    grid = CohortGrid(FakeFleet(), 3)
    assert grid.send_and_receive(to_all(grid), timeout=0) == []
    grid.wait(2.5)
    assert grid.clock() == 2.5


def test_the_queue_takes_ten_thousand_messages_and_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert module.MAX_QUEUED_MESSAGES >= 10_000
    monkeypatch.setattr(module, "MAX_QUEUED_MESSAGES", 2)
    grid = CohortGrid(FakeFleet(), 3)
    with pytest.raises(RoundError, match="at most 2 messages"):
        grid.push_messages(to_all(grid))


def test_messages_that_no_grid_takes_are_refused() -> None:
    grid = CohortGrid(FakeFleet(), 1)
    (node,) = grid.get_node_ids()
    (asked,) = to_all(grid)
    grid.push_messages([asked])
    for broken in (
        asked,
        Message(make_plan(), node, "train", group_id="1"),
        Message(make_plan(), node, "train", ttl=5),
        Message(make_plan(), 3, "train", ttl=5, group_id="1"),
    ):
        with pytest.raises(ValueError, match=r"waits already|ttl|group_id|no node"):
            grid.push_messages([broken])
    with pytest.raises(InputError, match="one device or more"):
        CohortGrid(FakeFleet(), 1, at_once=0)


def test_few_contents_are_remembered() -> None:
    grid = CohortGrid(FakeFleet(), 1)
    for number in range(1, 20):
        grid.send_and_receive(to_all(grid, make_plan(number)))
    assert len(grid._known) <= module.MAX_KNOWN_CONTENTS


def test_the_run_and_the_deprecated_constructor_are_those_of_the_other_grid() -> None:
    grid = CohortGrid(FakeFleet(), 1)
    run_record = grid.run
    run_record.run_id = 99
    grid.set_run(run_record)
    assert grid.run.run_id == 99
    made = grid.create_message(RecordDict(), "query", 5, "1", ttl=3)
    assert (made.metadata.dst_node_id, made.metadata.ttl) == (5, 3)
