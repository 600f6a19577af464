from __future__ import annotations

from collections import deque

from hypothesis import example, given
from hypothesis import strategies as st

from clients.agent.intake.acks import (
    COMMIT_BYTES,
    COMMIT_MESSAGES,
    COMMIT_S,
    IN_FLIGHT,
    STALL_S,
    Ledger,
    digest_of,
)

EVENTS = ("deliver", "deliver", "deliver", "keep", "hear", "lose", "crash")


class World:
    """A broker that repeats all it heard no acknowledgement of, and a store of transactions."""

    def __init__(self, messages: int, at_risk: int) -> None:
        self.messages, self.at_risk = messages, at_risk
        self.unheard = deque(range(messages))
        self.next = 0  # place in it of what this connection brings next
        self.wire: deque[int] = deque()  # acknowledgements under way
        self.kept: list[int] = []
        self.disk = b""
        self.lines: list[int] = []
        self.came: list[int] = []
        self.ledger = Ledger(b"", at_risk)

    def do(self, event: str) -> None:
        {"crash": self.crash, "lose": self.lose, "keep": self.keep, "hear": self.hear}.get(
            event, self.deliver
        )()

    def deliver(self) -> None:
        if self.next == len(self.unheard):
            return
        if self.ledger.full:
            self.keep()
            while self.wire:
                self.hear()
            self.ledger.confirm()
        if self.next < len(self.unheard):
            message = self.unheard[self.next]
            self.next += 1
            self.came.append(message)
            if self.ledger.add(message + 1, digest_of("t", b"%d" % message), 1, 0.0):
                self.lines.append(message)

    def keep(self) -> None:
        self.kept += self.lines
        self.disk, self.lines = self.ledger.recent, []
        settled = [number - 1 for number in self.ledger.settle()]
        assert settled == self.came
        assert set(settled) <= set(self.kept)
        self.wire += settled
        self.came = []

    def hear(self) -> None:
        if self.wire:
            assert self.wire.popleft() == self.unheard.popleft()
            self.next -= 1

    def lose(self) -> None:
        self.keep()
        self.ledger.disconnect()
        self.wire.clear()
        self.next = 0

    def crash(self) -> None:
        self.ledger, self.lines, self.came = Ledger(self.disk, self.at_risk), [], []
        self.wire.clear()
        self.next = 0


@example(["deliver"] * 3 + ["lose"], 4, 1)
@example(["deliver", "keep", "crash"] * 3, 4, 2)
@given(st.lists(st.sampled_from(EVENTS), max_size=80), st.integers(0, 16), st.integers(1, 4))
def test_every_message_is_kept_once_in_order_whatever_is_cut_off(
    events: list[str], messages: int, at_risk: int
) -> None:
    world = World(messages, at_risk)
    for event in events:
        world.do(event)
        assert len(world.disk) <= 16 * at_risk
    while world.next < len(world.unheard):
        world.deliver()
    world.keep()
    while world.wire:
        world.hear()
    assert world.kept == list(range(messages))
    assert not world.unheard


@given(st.lists(st.integers(0, 5), max_size=30))
def test_acknowledgements_are_those_of_deliveries_in_their_order(numbers: list[int]) -> None:
    ledger = Ledger()
    for number in numbers:
        ledger.add(number or None, b"%08d" % number, 1, 0.0)
    assert ledger.settle() == tuple(number for number in numbers if number)
    assert ledger.settle() == ()
    assert not ledger.due(1e9)


@given(st.lists(st.binary(min_size=8, max_size=8), max_size=20), st.integers(1, 8))
def test_what_is_remembered_is_bounded_and_survives(digests: list[bytes], bound: int) -> None:
    ledger = Ledger(at_risk=bound)
    for digest in digests:
        ledger.add(1, digest, 1, 0.0)
    assert len(ledger.recent) <= 16 * bound
    again = Ledger(ledger.recent + b"cut", bound)
    assert again.recent == ledger.recent
    for digest in digests[-bound:]:
        assert not again.add(1, digest, 1, 0.0)


def filled(count: int, apart_s: float = 0.0, size: int = 1) -> Ledger:
    ledger = Ledger()
    for at in range(count):
        ledger.add(at, b"%08d" % at, size, at * apart_s)
    return ledger


def test_it_is_time_after_some_messages_bytes_or_seconds() -> None:
    assert not Ledger().due(1e9)
    assert not filled(1).due(COMMIT_S * 0.99)
    assert filled(1).due(COMMIT_S)
    assert not filled(COMMIT_MESSAGES - 1).due(0.0)
    assert filled(COMMIT_MESSAGES).due(0.0)
    assert filled(1, size=COMMIT_BYTES).due(0.0)
    assert COMMIT_MESSAGES < IN_FLIGHT


def test_a_broker_that_waits_for_acknowledgements_gets_them_before_the_second_is_over() -> None:
    assert filled(20).due(1.1 * STALL_S)
    assert not filled(20).due(0.9 * STALL_S)
    # A sensor's own pace is no stall.
    paced = filled(5, apart_s=0.1)
    assert not paced.due(0.4 + 0.3)
    assert paced.due(0.4 + 0.41)
