"""A reply that cannot be read closes its device's answer, with the reason, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
from flwr.app import Message

from fleet.federate.admission import Reason
from server.flower_replies import Announced, SuperLinkReplies
from server.pulling import REPLY_S
from server.registry.records import RefusalRow
from simulations.inprocess import InProcessGrid
from tests.server.standing.standing import Fleet
from tests.server.superlink_side import SuperLinkSide

# What rounds and answers take in simulated time: a look a second, no more.
BRIEF_S = 10.0

Send = Callable[[SuperLinkSide, Message], None]


class Wire(SuperLinkReplies):
    """An in-process grid's replies as they pass a SuperLink.

    Attributes:
        sends: How a device sends its updates, by partition, where not as it should.
        looks: How often it was looked for replies.
    """

    def __init__(self, grid: InProcessGrid) -> None:
        self.superlink, self.source = SuperLinkSide(), grid
        self.sends: dict[int, Send] = {}
        self.looks = 0
        super().__init__(self.superlink.grid())

    def announced(self, ids: Iterable[str], most: int) -> list[Announced]:
        self.looks += 1
        wanted = set(ids)
        for reply in self.source.pull_messages(wanted):
            send = None
            if reply.metadata.message_type == "train":
                send = self.sends.get(self.source._partitions[reply.metadata.src_node_id])
            (send or SuperLinkSide.answer)(self.superlink, reply)
        return super().announced(wanted, most)


@pytest.fixture
def wire(quick: Fleet) -> Wire:
    """Three devices whose replies pass a SuperLink."""
    made = Wire(quick.grid)
    quick.service.asking.replies.side = made
    return made


def half_sent(superlink: SuperLinkSide, reply: Message) -> None:
    superlink.announce(reply)


def of_no_message(superlink: SuperLinkSide, reply: Message) -> None:
    superlink.answer(reply, reply.content["config"])


def refused(fleet: Fleet, number: int) -> RefusalRow:
    (found,) = fleet.registry.rounds.refusals(number)
    return found


def test_rounds_over_a_superlink_are_those_without_one(quick: Fleet, wire: Wire) -> None:
    quick.policy(rounds=2)
    quick.released(2)
    assert quick.grid.clock() <= BRIEF_S
    assert quick.registry.rounds.refusals(1) == ()
    assert wire.looks > 0
    assert quick.registry.replay(2).same


def test_a_reply_that_never_comes_fails_its_device_and_the_round_closes_before_its_deadline(
    quick: Fleet, wire: Wire
) -> None:
    evil, *others = quick.devices.names
    wire.sends[0] = half_sent
    quick.policy(rounds=1, quorum=2, minimum=3, deadline_s=600.0)
    quick.released(1)
    assert REPLY_S <= quick.grid.clock() <= REPLY_S + BRIEF_S
    assert {each.device for each in quick.registry.rounds.updates(1)} == set(others)
    row = refused(quick, 1)
    assert (row.device, row.reason) == (evil, Reason.failed)
    assert row.detail.startswith("unreadable-reply: 6 of 6 objects had not come")


def test_a_reply_that_never_comes_holds_no_round_longer_than_its_deadline(
    quick: Fleet, wire: Wire
) -> None:
    wire.sends[0] = half_sent
    quick.policy(rounds=1, quorum=2, minimum=3, deadline_s=30.0)
    quick.released(1)
    assert quick.grid.clock() <= 30.0 + BRIEF_S
    assert refused(quick, 1).reason is Reason.no_reply
    # Long after, what is still listened for is nobody's answer.
    quick.steps(int(REPLY_S) + 5)
    quick.policy(rounds=2, quorum=2, minimum=3, deadline_s=30.0)
    wire.sends.clear()
    quick.released(2)
    assert quick.registry.rounds.refusals(2) == ()


def test_a_reply_that_is_no_message_fails_its_device_at_once(quick: Fleet, wire: Wire) -> None:
    wire.sends[1] = of_no_message
    quick.policy(rounds=2, quorum=2, minimum=3)
    quick.released(2)
    assert quick.grid.clock() <= BRIEF_S
    for number in (1, 2):
        row = refused(quick, number)
        assert (row.device, row.reason) == (quick.devices.names[1], Reason.failed)
        assert row.detail == "unreadable-reply: it is a ConfigRecord, not a message (0)"


def test_a_reply_that_comes_slowly_and_in_time_counts(quick: Fleet, wire: Wire) -> None:
    late: list[Message] = []

    def slowly(superlink: SuperLinkSide, reply: Message) -> None:
        superlink.announce(reply)
        late.append(reply)

    def wait(seconds: float) -> None:
        quick.grid.wait(seconds)
        if late and quick.grid.clock() >= REPLY_S / 2:
            wire.superlink.send(late.pop())

    wire.sends[2] = slowly
    quick.start(wait=wait)
    wire.source, quick.service.asking.replies.side = quick.grid, wire
    quick.policy(rounds=1)
    quick.released(1)
    assert REPLY_S / 2 <= quick.grid.clock() <= REPLY_S / 2 + BRIEF_S
    assert len(quick.registry.rounds.updates(1)) == 3
    assert quick.registry.rounds.refusals(1) == ()
