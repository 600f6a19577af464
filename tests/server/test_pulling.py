"""Replies are read within bounds, and nobody waits for one that does not come."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from flwr.app import ConfigRecord, Message
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from server import pulling
from server.flower import ARRAY_CHUNK_BYTES
from server.pulling import (
    LEAST_REPLY_BYTES,
    LOOK_FOR_S,
    REPLY_OBJECTS,
    REPLY_S,
    REPLY_TIMES,
    replies_of,
)
from simulations.inprocess import InProcessGrid
from tests.server.superlink_side import SuperLinkSide, asked, reply_to
from tests.server.test_asking import Changing


@dataclass
class Looking:
    """A SuperLink, a clock that stands unless told otherwise, and what reads the replies."""

    superlink: SuperLinkSide = field(default_factory=SuperLinkSide)
    time: float = 0.0
    each_call_s: float = 0.0
    sent: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replies = replies_of(self.superlink.grid(), self._now)

    def _now(self) -> float:
        self.time += self.each_call_s
        return self.time

    def ask(self, count: int = 1) -> list[Message]:
        """Note so many messages more as sent."""
        made = [asked(len(self.sent) + index) for index in range(count)]
        self.sent += made
        return made

    def pull(self) -> list[Message]:
        """Look for the replies to all messages that have none yet."""
        found = self.replies.pull([each.metadata.message_id for each in self.sent])
        got = {each.metadata.reply_to_message_id for each in found}
        self.sent = [each for each in self.sent if each.metadata.message_id not in got]
        return found


def why(reply: Message) -> str:
    assert reply.has_error()
    assert reply.error.code == 0  # not one after which a plan is pushed again
    start, _, reason = str(reply.error.reason).partition(": ")
    assert start == "unreadable-reply"
    return reason


def test_a_grid_without_a_wire_reads_by_itself() -> None:
    grid = InProcessGrid(Changing().app, 1)
    (node,) = grid.get_node_ids()
    sent = asked()
    sent.metadata.dst_node_id, sent.metadata.message_type = node, "query.status"
    (pushed,) = grid.push_messages([sent])
    replies = replies_of(grid, grid.clock)
    assert replies.side is None
    assert [each.metadata.reply_to_message_id for each in replies.pull([pushed])] == [pushed]


def test_replies_that_are_there_are_returned_once_and_forgotten_by_the_superlink() -> None:
    looking = Looking()
    first, second, _ = looking.ask(3)
    for number, message in enumerate((first, second)):
        looking.superlink.answer(reply_to(message, number + 1))
    found = looking.pull()
    entries = [
        float(each.content.array_records["arrays"]["packed"].numpy()[0])
        for each in sorted(found, key=lambda each: each.metadata.reply_to_message_id)
    ]
    assert sorted(entries) == [1.0, 2.0]
    assert sorted(looking.superlink.confirmed) == sorted(each.metadata.message_id for each in found)
    assert looking.pull() == []
    assert len(looking.superlink.pulls[-1]) == 1


def test_a_reply_that_is_announced_and_not_sent_delays_no_other() -> None:
    looking = Looking()
    evil, good = looking.ask(2)
    looking.superlink.announce(reply_to(evil, 1, who="evil"))
    assert looking.pull() == []
    looking.superlink.answer(reply_to(good, 2, who="good"))
    (found,) = looking.pull()
    assert found.metadata.reply_to_message_id == good.metadata.message_id
    assert looking.pull() == []
    # It is not asked for again, which a SuperLink would answer with an error.
    assert looking.superlink.pulls[-1] == {good.metadata.message_id}
    # One request a look, however much of it is missing.
    assert len(looking.superlink.fetched) == 3 + 6


def test_a_reply_that_never_comes_is_an_error_after_its_time() -> None:
    looking = Looking()
    (evil,) = looking.ask()
    made = reply_to(evil, 1)
    names = looking.superlink.announce(made)
    looking.superlink.send(made, *names[:2])
    assert looking.pull() == []
    looking.time = REPLY_S - 1
    assert looking.pull() == []
    looking.time = REPLY_S
    (reply,) = looking.pull()
    assert why(reply) == "4 of 6 objects had not come 60 s after it was announced"
    assert reply.metadata.reply_to_message_id == evil.metadata.message_id
    assert looking.superlink.confirmed == [names[-1]]


def test_a_slow_reply_that_comes_in_time_counts() -> None:
    looking = Looking()
    (slow,) = looking.ask()
    made = reply_to(slow, 5)
    names = looking.superlink.announce(made)
    for name in names[:-1]:
        looking.superlink.send(made, name)
        assert looking.pull() == []
        looking.time += REPLY_S / 6
    looking.superlink.send(made, names[-1])
    (reply,) = looking.pull()
    assert reply.content.array_records["arrays"]["packed"].numpy()[0] == 5
    # What was read once is not read again.
    assert all(looking.superlink.fetched.count(name) <= 2 for name in names)


def test_a_reply_that_is_no_message_is_an_error_at_once() -> None:
    looking = Looking()
    evil, good = looking.ask(2)
    looking.superlink.answer(reply_to(evil), ConfigRecord({"device": "evil"}))
    looking.superlink.answer(reply_to(good, 1))
    by_message = {each.metadata.reply_to_message_id: each for each in looking.pull()}
    assert why(by_message[evil.metadata.message_id]) == "it is a ConfigRecord, not a message"
    assert by_message[good.metadata.message_id].has_content()
    assert len(looking.superlink.confirmed) == 2


def test_a_reply_of_too_many_bytes_is_not_read_to_its_end() -> None:
    looking = Looking()
    (evil,) = looking.ask()
    made = reply_to(evil, 1, size=LEAST_REPLY_BYTES)
    looking.superlink.answer(made)
    (reply,) = looking.pull()
    assert why(reply) == f"it has more than {LEAST_REPLY_BYTES} bytes"
    assert len(looking.superlink.fetched) < 6


def test_what_is_there_of_a_half_sent_reply_is_read_whatever_else_is_missing() -> None:
    looking = Looking()
    (evil,) = looking.ask()
    made = reply_to(evil, 1, size=LEAST_REPLY_BYTES)
    names = looking.superlink.announce(made)
    largest = max(get_all_nested_objects(made).items(), key=lambda each: len(each[1].deflate()))[0]
    looking.superlink.send(made, largest)
    (reply,) = [reply for _ in names for reply in looking.pull()]
    assert why(reply) == f"it has more than {LEAST_REPLY_BYTES} bytes"


def test_a_reply_may_be_larger_where_what_was_sent_is() -> None:
    looking = Looking()
    (large,) = looking.ask()
    looking.replies.sending(4 * LEAST_REPLY_BYTES)
    looking.replies.sending(10)
    assert looking.replies.most_bytes == REPLY_TIMES * 4 * LEAST_REPLY_BYTES
    looking.superlink.answer(reply_to(large, 1, size=LEAST_REPLY_BYTES))
    assert looking.pull()[0].has_content()


def test_a_reply_of_too_many_objects_is_not_read_at_all() -> None:
    looking = Looking()
    (evil,) = looking.ask()
    assert looking.replies.most_objects == REPLY_OBJECTS + LEAST_REPLY_BYTES // ARRAY_CHUNK_BYTES
    made = reply_to(evil)
    for index in range(REPLY_OBJECTS):
        made.content[f"config-{index}"] = ConfigRecord({"index": index})
    looking.superlink.answer(made)
    (reply,) = looking.pull()
    assert why(reply) == f"it has more than {looking.replies.most_objects} objects"
    assert looking.superlink.fetched == []


def test_an_object_that_the_superlink_does_not_give_is_an_error() -> None:
    looking = Looking()
    gone, broken = looking.ask(2)
    names = looking.superlink.announce(reply_to(gone, 1))
    del looking.superlink.objects[names[0]]
    (reply,) = looking.pull()
    assert why(reply) == "an object of it is gone"
    looking.superlink.answer(reply_to(broken, 1))
    looking.superlink.broken = 500
    (reply,) = looking.pull()
    assert why(reply) == "the SuperLink answers 500"


def test_a_reply_to_what_nobody_asked_is_left_alone() -> None:
    looking = Looking()
    (mine,) = looking.ask()
    looking.superlink.answer(reply_to(asked(9), 1))
    entry = next(iter(looking.superlink._announced.values()))
    looking.superlink._announced[mine.metadata.message_id] = entry
    assert looking.pull() == []
    assert looking.superlink.fetched == []
    assert looking.replies._readings == {}


def test_a_look_ends_after_its_time_and_the_next_one_goes_on() -> None:
    looking = Looking()
    for message in looking.ask(6):
        looking.superlink.answer(reply_to(message, 1))
    looking.each_call_s = LOOK_FOR_S / 2.5
    counts = [len(looking.pull()) for _ in range(4)]
    assert sum(counts) == 6
    assert counts[0] == 2


def test_what_is_there_is_read_however_long_the_superlink_took_to_say_so() -> None:
    looking = Looking()
    (slow,) = looking.ask()
    looking.superlink.answer(reply_to(slow, 1))
    told = looking.superlink.PullMessages

    def slowly(request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        looking.time += 2 * LOOK_FOR_S
        return told(request)

    looking.superlink.PullMessages = slowly  # type: ignore[method-assign]
    assert len(looking.pull()) == 1


def test_replies_that_stall_do_not_starve_those_that_come_later() -> None:
    looking = Looking()
    evil = looking.ask(4)
    for message in evil:
        looking.superlink.announce(reply_to(message, 1))
    looking.pull()
    (good,) = looking.ask()
    looking.superlink.answer(reply_to(good, 1))
    looking.each_call_s = LOOK_FOR_S / 2.5
    found = [reply for _ in range(3) for reply in looking.pull()]
    assert [each.metadata.reply_to_message_id for each in found] == [good.metadata.message_id]


def test_parts_of_replies_are_held_in_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    looking = Looking()
    monkeypatch.setattr(pulling, "HELD_BYTES", 5000)
    messages = looking.ask(4)
    for number, message in enumerate(messages):
        made = reply_to(message, number + 1)
        names = looking.superlink.announce(made)
        looking.superlink.send(made, *names[:-1])
    refused = looking.pull()
    assert [why(each) for each in refused] == [
        "more than 5000 bytes wait for the rest of their replies"
    ] * len(refused)
    assert 1 <= len(refused) < 4
    # What is given up makes room again.
    looking.time = REPLY_S
    assert len(looking.pull()) == 4 - len(refused)
    (more,) = looking.ask()
    made = reply_to(more, 9)
    names = looking.superlink.announce(made)
    looking.superlink.send(made, *names[:-1])
    assert looking.pull() == []


def test_a_half_sent_reply_that_nobody_asks_for_any_more_is_forgotten() -> None:
    looking = Looking()
    evil, other = looking.ask(2)
    names = looking.superlink.announce(reply_to(evil, 1))
    looking.pull()
    looking.sent = [other]
    looking.time = REPLY_S - 1
    looking.pull()
    assert looking.superlink.confirmed == []
    looking.time = REPLY_S
    looking.pull()
    assert looking.superlink.confirmed == [names[-1]]
    assert looking.replies._readings == {}


def test_only_replies_that_are_asked_for_are_returned() -> None:
    looking = Looking()
    mine, theirs = looking.ask(2)
    made = reply_to(mine, 1)
    looking.superlink.announce(made)
    looking.superlink.announce(reply_to(theirs, 2))
    looking.pull()
    looking.superlink.send(made)
    assert looking.replies.pull([theirs.metadata.message_id]) == []
    assert len(looking.replies.pull([mine.metadata.message_id])) == 1
