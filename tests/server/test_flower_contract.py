"""What we rely on of Flower's private names; a new Flower that breaks it fails here first."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.constant import FLWR_DISABLE_UPDATE_CHECK
from flwr.supercore.task_identity import TaskIdentity

from server import flower

pytestmark = pytest.mark.contract

NODE = 0x7EED_0000_0000_0001


def message(*arrays: np.ndarray, **config: int | str | bytes) -> Message:
    flower.become_task()
    content = RecordDict()
    if arrays:
        named = {f"core-{index}": Array(array) for index, array in enumerate(arrays)}
        content["arrays"] = ArrayRecord(named)
    if config:
        content["config"] = ConfigRecord(dict(config))
    return Message(content, NODE, "train", ttl=60, group_id="1")


def test_messages_can_be_made_once_this_process_is_a_task() -> None:
    flower.become_task()
    assert message(release=1).metadata.run_id == flower.task_run_id()


def test_becoming_a_task_twice_keeps_the_first_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, None)
    flower.become_task(run_id=5, node_id=6, task_id=7)
    flower.become_task(run_id=8, node_id=9, task_id=10)
    assert (TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id) == (5, 6, 7)


def test_a_message_cannot_be_made_in_a_process_that_is_no_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TaskIdentity, "_run_id", None)
    with pytest.raises(RuntimeError, match="run_id is not set"):
        Message(RecordDict(), NODE, "train")


def test_one_array_of_2_kb_costs_6_objects_and_about_1_kb_more() -> None:
    cost = flower.wire_bytes(message(np.zeros(512, np.float32), release=1))
    assert (cost.objects, cost.tree_bytes) == (6, 409)
    assert cost.object_bytes == pytest.approx(2987, rel=0.02)
    assert cost.total == cost.object_bytes + cost.tree_bytes


def test_48_arrays_of_2_kb_cost_100_objects() -> None:
    arrays = [np.full((2, 5), index, np.float32) for index in range(48)]
    assert flower.wire_bytes(message(*arrays, release=1)).objects == 100


def test_bytes_in_a_config_record_cost_little_more_than_themselves() -> None:
    cost, without = (flower.wire_bytes(message(packed=bytes(size))) for size in (2048, 1))
    assert cost.objects == 3
    assert cost.total - without.total == pytest.approx(2047, abs=10)


def test_equal_contents_are_one_object() -> None:
    same = np.ones(512, np.float32)
    different = np.zeros(512, np.float32)
    assert flower.wire_bytes(message(same, same)).objects == 5
    assert flower.wire_bytes(message(same, different)).objects == 7


def test_wire_bytes_do_not_depend_on_when_a_message_is_made() -> None:
    first, second = message(release=1), message(release=1)
    second.metadata.created_at += 1e6
    assert flower.wire_bytes(first) == flower.wire_bytes(second)


def test_a_changed_array_is_deflated_anew() -> None:
    sent = message(np.zeros(4, np.float32))
    before = flower.deflate(sent).message_id
    sent.content.array_records["arrays"]["core-0"].data += b"x"
    assert flower.deflate(sent).message_id != before


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "bool"])
def test_a_message_comes_back_equal_from_the_wire(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    sent = message(array, release="r-1", digest=b"\x00\xff")
    sent.content["metrics"] = MetricRecord({"loss": 0.1, "counts": [1, 2]})
    back = flower.inflate(flower.deflate(sent))
    received = back.content.array_records["arrays"]["core-0"].numpy()
    assert received.dtype == array.dtype
    np.testing.assert_array_equal(received, array)
    assert back.content == sent.content
    assert back.metadata.message_id == flower.deflate(sent).message_id
    assert (back.metadata.ttl, back.metadata.group_id) == (60, "1")


def test_an_inflated_message_shares_nothing_with_the_one_sent() -> None:
    sent = message(np.zeros(4, np.float32), release=1)
    back = flower.inflate(flower.deflate(sent))
    back.content.config_records["config"]["release"] = 2
    back.content.array_records["arrays"]["core-0"].data = b""
    assert sent.content.config_records["config"]["release"] == 1
    assert sent.content.array_records["arrays"]["core-0"].numpy().shape == (4,)


def test_a_known_content_is_deflated_once() -> None:
    known: dict[str, flower.Content] = {}
    content = message(np.zeros(4, np.float32)).content
    parcels = [
        flower.deflate(Message(content, node, "train", ttl=60, group_id="1"), known)
        for node in (NODE, NODE + 1)
    ]
    assert len(known) == 1
    assert parcels[0].content is parcels[1].content
    assert parcels[0].message_id != parcels[1].message_id


def test_an_error_reply_travels_as_one_object() -> None:
    asked = flower.inflate(flower.deflate(message(release=1)))
    error = Error(flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "reason")
    reply = flower.inflate(flower.deflate(Message(error, reply_to=asked)))
    assert reply.error == error
    assert reply.metadata.reply_to_message_id == asked.metadata.message_id
    assert flower.wire_bytes(reply).objects == 1


def test_the_superlink_answers_for_a_device_from_node_1() -> None:
    asked = flower.inflate(flower.deflate(message(release=1)))
    offline = flower.superlink_error(asked, flower.ErrorCode.NODE_UNAVAILABLE, "offline")
    expired = flower.superlink_error(asked, flower.ErrorCode.MESSAGE_UNAVAILABLE, "expired")
    for reply in (offline, expired):
        assert reply.metadata.src_node_id == 1
        assert reply.metadata.reply_to_message_id == asked.metadata.message_id
    assert (offline.metadata.message_type, offline.metadata.group_id) == ("train", "1")
    assert (expired.metadata.message_type, expired.metadata.group_id) == ("system", "")


def test_error_codes_keep_their_numbers() -> None:
    codes = flower.ErrorCode
    assert (codes.CLIENT_APP_RAISED_EXCEPTION, codes.MESSAGE_UNAVAILABLE) == (2, 3)
    assert (codes.REPLY_MESSAGE_UNAVAILABLE, codes.NODE_UNAVAILABLE) == (4, 5)


def test_a_grid_has_exactly_the_abstract_names_that_ours_implements() -> None:
    assert Grid.__abstractmethods__ == {
        "create_message",
        "get_node_ids",
        "pull_messages",
        "push_messages",
        "run",
        "send_and_receive",
        "set_run",
    }


def test_a_client_app_is_called_with_a_message_and_a_context() -> None:
    assert list(inspect.signature(ClientApp.__call__).parameters) == ["self", "message", "context"]


def test_an_online_node_has_its_id_and_name() -> None:
    node = flower.online_node(NODE, "jetson-03")
    assert (node.node_id, node.name, node.status) == (NODE, "jetson-03", "online")


def test_an_empty_run_has_its_id() -> None:
    assert flower.Run.create_empty(12).run_id == 12


def test_the_quiet_environment_switches_off_what_flower_reads_there() -> None:
    script = (
        "from flwr.supercore import telemetry\n"
        "from flwr.common.constant import FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION as name\n"
        "import os; print(telemetry.FLWR_TELEMETRY_ENABLED, os.environ[name])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **flower.QUIET_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["0", "1"]
    assert FLWR_DISABLE_UPDATE_CHECK in flower.QUIET_ENVIRONMENT


def test_a_twin_has_the_metadata_of_its_message_and_keeps_it() -> None:
    sent = message(np.zeros(4, np.float32), release=1)
    flower.stamp(sent, "a" * 64)
    same = flower.twin(sent)
    assert same.metadata == sent.metadata
    assert sent.metadata.message_id == "a" * 64
    sent.metadata.ttl = 1
    sent.metadata.dst_node_id = 2
    assert (same.metadata.ttl, same.metadata.dst_node_id) == (60, NODE)
    assert Message(RecordDict(), reply_to=same).metadata.reply_to_message_id == "a" * 64


def test_an_array_longer_than_a_chunk_travels_as_several_objects() -> None:
    assert flower.ARRAY_CHUNK_BYTES >= 1_000_000
    counts = []
    for size in (flower.ARRAY_CHUNK_BYTES, flower.ARRAY_CHUNK_BYTES + 1):
        packed = Array("uint8", (size,), "numpy.ndarray", bytes(size))
        content = RecordDict({"arrays": ArrayRecord({"packed": packed})})
        sent = Message(content, NODE, "train", ttl=60, group_id="1")
        counts.append(flower.wire_bytes(sent).objects)
    assert counts[1] == counts[0] + 1
