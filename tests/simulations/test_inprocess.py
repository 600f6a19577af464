from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fleet.errors import InputError, RoundError, StorageError
from server.flower import ErrorCode, wire_bytes
from simulations import inprocess
from simulations.inprocess import InProcessGrid, Traffic

app = ClientApp()


@app.train()
def echo(message: Message, context: Context) -> Message:
    marks = context.state.config_records.setdefault("marks", ConfigRecord())
    marks[f"visit-{len(marks)}"] = True
    context.state["marks"] = marks
    message.content["seen"] = ConfigRecord({"visits": len(marks), **context.node_config})
    return Message(message.content, reply_to=message)


@app.query("configs")
def configs(message: Message, context: Context) -> Message:
    return Message(RecordDict({"run": ConfigRecord(dict(context.run_config))}), reply_to=message)


@app.train("storage")
def fail_to_store(message: Message, context: Context) -> Message:
    raise StorageError(str(message.content["config"]["code"]), "a file could not be written")


@app.train("interrupt")
def interrupt(message: Message, context: Context) -> Message:
    raise KeyboardInterrupt


@app.train("mutate")
def mutate(message: Message, context: Context) -> Message:
    context.state["kept"] = message.content["config"]
    message.content.config_records["config"]["code"] = "mutated"
    return Message(RecordDict({"config": context.state["kept"]}), reply_to=message)


@app.train("stranger")
def answer_something_else(message: Message, context: Context) -> Message:
    return Message(RecordDict(), message.metadata.src_node_id, "train", ttl=1, group_id="1")


def message(
    node: int, kind: str = "train", code: str = "x", ttl: float = 60, group: str = "1"
) -> Message:
    content = RecordDict({"config": ConfigRecord({"code": code})})
    content["arrays"] = ArrayRecord([np.arange(512, dtype=np.float32)])
    return Message(content, node, kind, ttl=ttl, group_id=group)


def to_all(grid: Grid, kind: str = "train") -> list[Message]:
    return [message(node, kind) for node in grid.get_node_ids()]


def one_reply(grid: InProcessGrid, asked: Message) -> Message:
    (reply,) = grid.send_and_receive([asked])
    return reply


def partitions(replies: list[Message]) -> list[int]:
    return [int(str(reply.content["seen"]["partition-id"])) for reply in replies]


def test_each_message_is_answered_exactly_once() -> None:
    grid = InProcessGrid(app, 5)
    ids = grid.push_messages(to_all(grid))
    replies = [reply for _ in range(10) for reply in grid.pull_messages(ids)]
    assert sorted(reply.metadata.reply_to_message_id for reply in replies) == sorted(ids)
    assert sorted(partitions(replies)) == [0, 1, 2, 3, 4]


def test_one_pull_runs_at_most_one_device() -> None:
    grid = InProcessGrid(app, 3)
    ids = grid.push_messages(to_all(grid))
    assert [len(grid.pull_messages(set(ids))) for _ in range(4)] == [1, 1, 1, 0]


def test_a_pull_runs_only_the_messages_asked_for_in_the_order_they_were_pushed() -> None:
    grid = InProcessGrid(app, 3)
    first, second, third = grid.push_messages(to_all(grid))
    (reply,) = grid.pull_messages([third, second])
    assert reply.metadata.reply_to_message_id == second
    (reply,) = grid.pull_messages({first})
    assert reply.metadata.reply_to_message_id == first


def test_unknown_ids_are_ignored() -> None:
    assert InProcessGrid(app, 1).pull_messages(["unknown"]) == []


def test_node_ids_are_stable_and_unlike_partition_ids() -> None:
    ids = InProcessGrid(app, 20).get_node_ids()
    assert ids == InProcessGrid(app, 20).get_node_ids()
    assert set(ids).isdisjoint(InProcessGrid(app, 20, seed=1).get_node_ids())
    assert min(ids) > 1
    grid = InProcessGrid(app, 20)
    assert partitions(grid.send_and_receive(to_all(grid))) != list(range(20))


def test_nodes_are_those_of_the_node_ids_and_online() -> None:
    grid = InProcessGrid(app, 2)
    assert [node.node_id for node in grid.get_nodes()] == grid.get_node_ids()
    assert {node.status for node in grid.get_nodes()} == {"online"}


def test_a_device_knows_its_partition_and_configurations() -> None:
    grid = InProcessGrid(app, 1, run_config={"rank": 4}, node_config={"dataset-path": "here"})
    seen = one_reply(grid, to_all(grid)[0]).content["seen"]
    assert seen["num-partitions"] == 1
    assert seen["dataset-path"] == "here"
    assert one_reply(grid, to_all(grid, "query.configs")[0]).content["run"] == {"rank": 4}


def test_state_persists_for_each_device_by_itself() -> None:
    grid = InProcessGrid(app, 2)
    first, second = grid.get_node_ids()
    visits = [
        one_reply(grid, message(node)).content["seen"]["visits"] for node in (first, first, second)
    ]
    assert visits == [1, 2, 1]


def test_a_device_without_state_takes_no_memory_between_messages() -> None:
    grid = InProcessGrid(app, 3)
    first, second, third = grid.get_node_ids()
    for node in (first, second, third):
        one_reply(grid, message(node, "query.configs"))
    assert grid._contexts == {}
    one_reply(grid, message(second))
    assert list(grid._contexts) == [second]


def test_an_exception_of_the_app_becomes_an_error_reply() -> None:
    grid = InProcessGrid(app, 1)
    (asked,) = to_all(grid, "train.unregistered")
    reply = one_reply(grid, asked)
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "No train function registered" in (reply.error.reason or "")
    assert reply.metadata.src_node_id == asked.metadata.dst_node_id


def test_an_answer_to_no_message_becomes_an_error_reply() -> None:
    grid = InProcessGrid(app, 1)
    assert one_reply(grid, to_all(grid, "train.stranger")[0]).has_error()


def test_a_full_disk_ends_the_run_but_another_storage_error_does_not() -> None:
    grid = InProcessGrid(app, 1)
    (node,) = grid.get_node_ids()
    assert one_reply(grid, message(node, "train.storage", "torn-file")).has_error()
    with pytest.raises(StorageError):
        one_reply(grid, message(node, "train.storage", "disk-full"))


def test_an_interrupt_passes_through() -> None:
    grid = InProcessGrid(app, 1)
    with pytest.raises(KeyboardInterrupt):
        grid.send_and_receive(to_all(grid, "train.interrupt"))


def test_offline_devices_are_not_listed_and_pulling_from_them_is_an_error() -> None:
    sleeping = {1}
    grid = InProcessGrid(app, 3, offline=sleeping.__contains__)
    everyone = InProcessGrid(app, 3).get_node_ids()
    assert len(grid.get_node_ids()) == 2
    (asleep,) = set(everyone) - set(grid.get_node_ids())
    reply = one_reply(grid, message(asleep))
    assert reply.error.code == ErrorCode.NODE_UNAVAILABLE
    (waiting,) = grid.push_messages([message(asleep)])
    sleeping.clear()
    assert partitions(grid.pull_messages([waiting])) == [1]


def test_the_clock_moves_only_when_somebody_waits() -> None:
    grid = InProcessGrid(app, 3)
    grid.send_and_receive(to_all(grid))
    assert grid.clock() == 0
    grid.wait(2.5)
    grid.wait(0)
    assert grid.clock() == 2.5
    with pytest.raises(ValueError, match="backwards"):
        grid.wait(-1)


def test_a_message_whose_ttl_ran_out_is_answered_with_an_error_and_not_run() -> None:
    grid = InProcessGrid(app, 2)
    early, late = (grid.push_messages([message(node, ttl=10)])[0] for node in grid.get_node_ids())
    grid.wait(9.9)
    assert grid.pull_messages([early])[0].has_content()
    grid.wait(0.1)
    (reply,) = grid.pull_messages([late])
    assert reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE
    assert reply.metadata.reply_to_message_id == late
    assert grid.ledger["train"].messages_up == 1


def test_a_timeout_that_is_over_pulls_nothing() -> None:
    grid = InProcessGrid(app, 2)
    assert grid.send_and_receive(to_all(grid), timeout=0) == []


def test_a_device_cannot_reach_into_what_the_server_sent_or_received() -> None:
    grid = InProcessGrid(app, 1)
    (asked,) = to_all(grid, "train.mutate")
    reply = one_reply(grid, asked)
    assert asked.content["config"]["code"] == "x"
    reply.content.config_records["config"]["code"] = "changed by the server"
    context = next(iter(grid._contexts.values()))
    assert context.state["kept"] == {"code": "mutated"}


def test_the_ledger_counts_the_bytes_on_the_wire_by_type() -> None:
    grid = InProcessGrid(app, 2)
    asked = to_all(grid)
    replies = grid.send_and_receive(asked)
    one_reply(grid, to_all(grid, "query.configs")[0])
    down = sum(wire_bytes(each).total for each in asked)
    up = sum(wire_bytes(each).total for each in replies)
    assert grid.ledger["train"] == Traffic(2, down, 2, up)
    assert grid.ledger["query"].messages_down == 1
    assert grid.ledger["evaluate"] == Traffic()


@pytest.mark.parametrize(
    ("broken", "rule"),
    [
        ({"ttl": 0.0}, "ttl"),
        ({"ttl": -1.0}, "ttl"),
        ({"group": ""}, "group_id"),
    ],
)
def test_a_message_without_ttl_or_group_is_refused(
    broken: dict[str, float | str], rule: str
) -> None:
    grid = InProcessGrid(app, 1)
    (node,) = grid.get_node_ids()
    with pytest.raises(ValueError, match=rule):
        grid.push_messages([message(node, **broken)])  # type: ignore[arg-type]


def test_a_message_with_the_ttl_that_flower_gives_by_itself_is_refused() -> None:
    grid = InProcessGrid(app, 1)
    (node,) = grid.get_node_ids()
    with pytest.raises(ValueError, match="ttl of its own"):
        grid.push_messages([Message(RecordDict(), node, "train", group_id="1")])


def test_the_ttl_left_to_a_reply_does_not_depend_on_how_long_devices_took() -> None:
    grid = InProcessGrid(app, 1)
    (asked,) = to_all(grid)
    asked.metadata.created_at -= 3600
    assert one_reply(grid, asked).metadata.ttl == pytest.approx(60, abs=5)


def test_a_message_to_no_node_is_refused() -> None:
    grid = InProcessGrid(app, 1)
    with pytest.raises(ValueError, match="no node 3"):
        grid.push_messages([message(3)])


def test_the_same_message_is_pushed_once() -> None:
    grid = InProcessGrid(app, 1)
    (asked,) = to_all(grid)
    with pytest.raises(ValueError, match="waits already"):
        grid.push_messages([asked, asked])


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inprocess, "MAX_QUEUED_MESSAGES", 2)
    grid = InProcessGrid(app, 3)
    with pytest.raises(RoundError, match="at most 2 messages"):
        grid.push_messages(to_all(grid))


def test_few_contents_are_remembered() -> None:
    grid = InProcessGrid(app, 1)
    (node,) = grid.get_node_ids()
    grid.send_and_receive(message(node, code=f"{index}") for index in range(20))
    assert len(grid._known) <= inprocess.MAX_KNOWN_CONTENTS


def test_a_fleet_without_devices_is_refused() -> None:
    with pytest.raises(InputError, match="at least one device"):
        InProcessGrid(app, 0)


def test_the_run_is_a_copy_and_can_be_set() -> None:
    grid = InProcessGrid(app, 1)
    run = grid.run
    run.run_id = 99
    assert grid.run.run_id != 99
    grid.set_run(run)
    assert grid.run.run_id == 99


def test_a_server_app_runs_on_it() -> None:
    server, answered = ServerApp(), list[int]()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        answered.extend(partitions(list(grid.send_and_receive(to_all(grid)))))

    context = Context(1, 1, {}, RecordDict(), {})
    server(InProcessGrid(app, 3), context)
    assert sorted(answered) == [0, 1, 2]


def test_the_deprecated_constructor_makes_a_message_of_this_run() -> None:
    grid = InProcessGrid(app, 1)
    made = grid.create_message(RecordDict(), "query", 5, "1", ttl=3)
    assert (made.metadata.dst_node_id, made.metadata.ttl) == (5, 3)
