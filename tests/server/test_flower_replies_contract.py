"""What we rely on of how Flower's grid and SuperLink hand over replies."""

from __future__ import annotations

import inspect
import json

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.constant import OBJECT_PUSH_SESSION_TTL_SECONDS
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_id,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import http_grid

from server import flower, flower_replies
from server.flower_replies import GRID, Announced, SuperLinkReplies, Unreadable, superlink_replies
from server.pulling import REPLY_S
from simulations.inprocess import InProcessGrid
from tests.server.superlink_side import SuperLinkSide, asked, reply_to
from tests.server.test_asking import Changing

pytestmark = pytest.mark.contract

MIB = 2**20


@pytest.fixture
def superlink() -> SuperLinkSide:
    return SuperLinkSide()


@pytest.fixture
def replies(superlink: SuperLinkSide) -> SuperLinkReplies:
    found = superlink_replies(superlink.grid())
    assert found is not None
    return found


def read(replies: SuperLinkReplies, superlink: SuperLinkSide, sent: Message) -> Message:
    (announced,) = replies.announced([sent.metadata.message_id], 100)
    return replies.whole(
        announced, {each: superlink.objects[each] for each in announced.objects}, MIB
    )


def test_only_a_grid_that_speaks_to_a_superlink_has_a_superlinks_replies() -> None:
    assert http_grid.__name__ == GRID
    assert superlink_replies(SuperLinkSide().grid()) is not None
    with_one = InProcessGrid(Changing().app, 1)
    assert superlink_replies(with_one) is None


def test_the_client_of_the_grid_has_what_we_call() -> None:
    assert isinstance(inspect.getattr_static(http_grid.HttpGrid, "_runtime_client"), property)
    for name in ("PullMessages", "PullObject", "ConfirmMessageReceived"):
        assert list(inspect.signature(getattr(RuntimeHttpClient, name)).parameters) == [
            "self",
            "request",
        ]


def test_a_reply_is_given_up_before_its_push_session_ends() -> None:
    assert REPLY_S < OBJECT_PUSH_SESSION_TTL_SECONDS


def test_a_reply_read_object_by_object_is_what_flowers_grid_reads(
    superlink: SuperLinkSide, replies: SuperLinkReplies
) -> None:
    sent = asked()
    superlink.answer(reply_to(sent, 3))
    ours = read(replies, superlink, sent)
    superlink.answer(reply_to(sent, 3))
    (theirs,) = superlink.grid().pull_messages([sent.metadata.message_id])
    assert ours.content == theirs.content
    assert ours.metadata.reply_to_message_id == theirs.metadata.reply_to_message_id
    assert ours.metadata.src_node_id == theirs.metadata.src_node_id
    assert len(ours.metadata.message_id) == len(theirs.metadata.message_id) == 64


def test_an_error_reply_and_the_superlinks_own_are_read(
    superlink: SuperLinkSide, replies: SuperLinkReplies
) -> None:
    sent = asked()
    superlink.answer(flower.superlink_error(sent, flower.ErrorCode.NODE_UNAVAILABLE, "offline"))
    found = read(replies, superlink, sent)
    assert (found.error.code, found.error.reason) == (5, "offline")


def test_an_object_that_has_not_come_one_that_is_gone_and_one_that_is_there(
    superlink: SuperLinkSide, replies: SuperLinkReplies
) -> None:
    superlink.objects |= {"a" * 64: b"", "b" * 64: b"there"}
    assert replies.fetch("a" * 64) is None
    assert replies.fetch("b" * 64) == b"there"
    with pytest.raises(Unreadable, match="gone"):
        replies.fetch("c" * 64)
    superlink.broken = 500
    with pytest.raises(Unreadable, match="500"):
        replies.fetch("b" * 64)


def test_a_tree_is_not_walked_beyond_what_may_be_read(
    superlink: SuperLinkSide, replies: SuperLinkReplies
) -> None:
    sent = asked()
    superlink.answer(reply_to(sent, 1))
    (found,) = replies.announced([sent.metadata.message_id], 2)
    assert (found.nodes, len(found.objects)) == (3, 3)


def chunked(chunks: bytes, named: list[int]) -> RecordDict:
    """Make records whose array names its one chunk as often as wanted."""
    content = RecordDict({"arrays": ArrayRecord({"packed": Array("uint8", (1,), "raw", chunks)})})
    array = content.array_records["arrays"]["packed"]
    body = {"dtype": "uint8", "shape": [1], "stype": "raw", "arraychunk_ids": named}
    packed = add_header_to_object_body(json.dumps(body).encode(), array)
    array.__dict__["deflate"] = lambda: packed
    return content


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (ConfigRecord({"a": 1}), "it is a ConfigRecord, not a message"),
        (RecordDict(), "it is a RecordDict, not a message"),
        (MetricRecord({"a": 1}), "it is a MetricRecord, not a message"),
    ],
)
def test_what_is_no_message_is_unreadable(
    superlink: SuperLinkSide, replies: SuperLinkReplies, content: InflatableObject, told: str
) -> None:
    sent = asked()
    superlink.answer(reply_to(sent), content)
    with pytest.raises(Unreadable, match=told):
        read(replies, superlink, sent)


def test_a_message_whose_content_is_no_records_is_unreadable(replies: SuperLinkReplies) -> None:
    reply = reply_to(asked())
    inner = reply.content["config"]
    forged = reply.deflate().replace(reply.content.object_id.encode(), inner.object_id.encode())
    objects = {inner.object_id: inner.deflate(), get_object_id(forged): forged}
    announced = Announced(get_object_id(forged), reply.metadata.reply_to_message_id, (), 0)
    with pytest.raises(Unreadable, match="make no message"):
        replies.whole(announced, objects, MIB)


def test_an_array_of_arrays_is_not_joined(replies: SuperLinkReplies) -> None:
    reply = reply_to(asked(), 1)
    objects = {name: each.deflate() for name, each in get_all_nested_objects(reply).items()}
    array = reply.content.array_records["arrays"]["packed"]
    (chunk,) = array.children
    forged = objects[array.object_id].replace(chunk.encode(), array.object_id.encode())
    announced = Announced(reply.object_id, reply.metadata.reply_to_message_id, (), 0)
    with pytest.raises(Unreadable, match="consists of chunks"):
        replies.whole(announced, {**objects, get_object_id(forged): forged}, MIB)


def test_a_reply_for_another_device_than_announced_is_unreadable(
    superlink: SuperLinkSide, replies: SuperLinkReplies
) -> None:
    mine, theirs = asked(1), asked(2)
    superlink.answer(reply_to(mine), reply_to(theirs))
    with pytest.raises(Unreadable, match="another message"):
        read(replies, superlink, mine)


def test_objects_that_are_not_those_of_the_tree_are_unreadable(
    superlink: SuperLinkSide, replies: SuperLinkReplies
) -> None:
    sent = asked()
    reply = reply_to(sent, 1)
    objects = {name: each.deflate() for name, each in get_all_nested_objects(reply).items()}
    announced = Announced(reply.object_id, sent.metadata.message_id, (), 0)
    for name in objects:
        with pytest.raises(Unreadable, match="make no message"):
            replies.whole(announced, {k: v for k, v in objects.items() if k != name}, MIB)
    for name, content in objects.items():
        for broken in (b"", b"garbage", content[: len(content) // 2], content[:-1] + b"\xff"):
            try:
                replies.whole(announced, {**objects, name: broken}, MIB)
            except Unreadable:
                continue


def test_an_array_that_names_a_chunk_again_and_again_is_not_joined(
    superlink: SuperLinkSide, replies: SuperLinkReplies, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = asked()
    superlink.answer(Message(chunked(bytes(1000), [0] * 3000), reply_to=sent))
    with monkeypatch.context() as patched:
        # Joined first, 100 kB of objects would be gigabytes before anybody counted them.
        patched.delattr(flower_replies, "inflate_object_from_contents")
        with pytest.raises(Unreadable, match="more than 1048576"):
            read(replies, superlink, sent)
    superlink.answer(Message(chunked(bytes(1000), [0] * 10), reply_to=sent))
    assert (
        len(read(replies, superlink, sent).content.array_records["arrays"]["packed"].data) == 10_000
    )


def test_what_stands_for_an_unreadable_reply_answers_the_same_message(
    replies: SuperLinkReplies,
) -> None:
    made = replies.refused(Announced("a" * 64, "b" * 64, (), 0), "unreadable-reply: why")
    assert made.metadata.reply_to_message_id == "b" * 64
    assert (made.error.code, made.error.reason) == (0, "unreadable-reply: why")
