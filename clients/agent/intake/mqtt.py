"""A source of samples behind an MQTT broker: nothing is lost or taken twice, whatever is cut off.

    broker ──► Subscription ──► Ledger ──► parse ──► Intake ──► store
      ▲                           │                               │
      └──── acknowledgements ◄────┴──── digests of the newest ────┘

A message is acknowledged when its samples are on the disk. Those of a broker that sends it again,
after a power cut just before the acknowledgement, are known by their digests.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from clients.agent.intake.acks import Ledger, digest_of
from clients.agent.intake.broker import Broker, BrokerError, client_id_of
from clients.agent.intake.intake import Intake, IntakeReport
from clients.agent.intake.lines import LARGEST_LINE
from clients.agent.intake.parse import CsvParser, JsonParser
from clients.agent.intake.sources import NONSENSE_LINES, Form, check_sense
from clients.agent.intake.spec import IntakeSpec
from clients.agent.intake.subscription import Lost, Message, Subscription
from clients.agent.store.store import Store

__all__ = ["AWAY_S", "ingest_mqtt"]

AWAY_S = 600.0
"""How long a broker may be away."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 30.0
STEADY_S = 30.0  # a connection that held for so long is no part of a series of failures
QUIET_POLL_S = 0.5
BUSY_POLL_S = 0.02
LARGEST_MESSAGE = 1 << 20
CSV_DELIMITER = ","


def ingest_mqtt(
    broker: Broker,
    topic: str,
    form: Form,
    spec: IntakeSpec,
    store: Store,
    person: str,
    name: str,
    *,
    device: str,
    idle_s: float,
    columns: Sequence[str] = (),
    away_s: float = AWAY_S,
    say: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> IntakeReport:
    """Take in what a broker delivers until it is silent.

    A message holds one or more lines. JSON lines are those of a file. CSV has no header in a
    message: the columns are the time and then ``columns``, with commas between. A message of more
    than a mebibyte, or a line of more than 64 KiB, holds no sample.

    Args:
        broker: Where, as whom.
        topic: The filter; all it lets through is one stream, so it should fit one sensor.
        form: CSV or JSON lines.
        spec: Units, rate and window.
        store: Where windows go.
        person: Who wears the sensor.
        name: Names the stream; a later one of that name and topic goes on.
        device: The device's name; a part of the session's.
        idle_s: A silence of this length, while connected, ends it.
        columns: The sensor's columns in a line of CSV; none: those of the spec.
        away_s: How long the broker may be away.
        say: Is told what people should know.
        clock: Seconds that only go forward.
        wait: Sleeps for seconds.
        chance: Random numbers from 0 to 1, to spread attempts.

    Returns:
        What was taken; samples of a message that came again are duplicates.

    Raises:
        BrokerError: ``broker-away`` after ``away_s``; others see :class:`Subscription`.
        DataError: ``source-unreadable`` when most lines hold no sample.
        StorageError: The store refused; what it acknowledged stays, the rest comes again.
    """
    intake = Intake(spec, store, person, name)
    receiver = _Receiver(intake, _parser(form, spec, columns, name))
    client_id = client_id_of(device, name, topic)
    subscription = Subscription(broker, topic, client_id, clock)
    link = _Link(broker, subscription, away_s, say, clock, wait, chance)
    goes_on = intake.position is not None
    try:
        link.open(goes_on)
        heard_s = clock()
        while clock() - heard_s < idle_s:
            try:
                messages = subscription.poll(BUSY_POLL_S if len(receiver.ledger) else QUIET_POLL_S)
                if messages:
                    heard_s = clock()
                for message in messages:
                    if receiver.ledger.full:
                        subscription.ack(receiver.keep())
                        subscription.confirm()
                        receiver.ledger.confirm()
                    receiver.take(message, heard_s)
            except Lost as lost:
                receiver.keep()  # their numbers are void now, their digests are known
                receiver.ledger.disconnect()
                lost_s = clock()
                link.reopen(str(lost))
                heard_s += clock() - lost_s
                continue
            if receiver.ledger.due(clock()):
                subscription.ack(receiver.keep())
                check_sense(intake.report(), name, NONSENSE_LINES)
        subscription.ack(receiver.keep())
    finally:
        subscription.close()
    check_sense(intake.report(), name, 1)
    report = intake.report()
    return replace(
        report,
        samples=report.samples + receiver.repeated,
        duplicates=report.duplicates + receiver.repeated,
    )


class _Receiver:
    """What came and is not on the disk yet; bounded by the ledger's limits and one message."""

    def __init__(self, intake: Intake, parse: CsvParser | JsonParser) -> None:
        position = intake.position
        # Of a stream that has no position, the prefix is free for what a broker may repeat.
        self.ledger = Ledger(position.prefix if position and not position.offset else b"")
        self.repeated = 0
        self._intake, self._parse = intake, parse
        self._lines: list[bytes] = []
        self._oversize = 0

    def take(self, message: Message, now_s: float) -> None:
        payload = message.payload
        size_bytes = min(len(payload), LARGEST_MESSAGE)
        digest = digest_of(message.topic, payload)
        new = self.ledger.add(message.number, digest, size_bytes, now_s)
        if len(payload) > LARGEST_MESSAGE:
            self._oversize += new
            return
        lines = [line for line in payload.split(b"\n") if line.strip()]
        if not new:
            self.repeated += len(lines)
            return
        fitting = [line for line in lines if len(line) <= LARGEST_LINE]
        self._oversize += len(lines) - len(fitting)
        self._lines += fitting

    def keep(self) -> tuple[int, ...]:
        """Bring all of it to the disk; return what may be acknowledged on this connection."""
        if not len(self.ledger):
            return ()
        chunk = self._parse(self._lines)
        chunk = replace(chunk, malformed=chunk.malformed + self._oversize)
        self._intake.take(chunk, 0, self.ledger.recent, last=True)
        self._lines, self._oversize = [], 0
        return self.ledger.settle()


class _Link:
    """Opens a subscription, and again, with growing waits, until the broker was away too long."""

    def __init__(
        self,
        broker: Broker,
        subscription: Subscription,
        away_s: float,
        say: Callable[[str], None],
        clock: Callable[[], float],
        wait: Callable[[float], None],
        chance: Callable[[], float],
    ) -> None:
        self._broker, self._subscription, self._away_s = broker, subscription, away_s
        self._say, self._clock, self._wait, self._chance = say, clock, wait, chance
        self._failures = 0
        self._opened_s = 0.0

    def open(self, goes_on: bool) -> None:
        """Open it; ``goes_on`` where the broker should have kept a session."""
        begin_s = self._clock()
        while True:
            try:
                kept = self._subscription.open()
                break
            except Lost as lost:
                self._pause(begin_s, str(lost))
        self._opened_s = self._clock()
        self._say(f"{self._broker}: subscribed")
        if goes_on and not kept:
            self._say(f"{self._broker} kept no session: what came while nobody read is lost")

    def reopen(self, reason: str) -> None:
        self._say(f"{self._broker}: {reason}; connecting again")
        if self._clock() - self._opened_s >= STEADY_S:
            self._failures = 0
        self._pause(self._clock(), reason)
        self.open(goes_on=True)

    def _pause(self, begin_s: float, reason: str) -> None:
        left_s = begin_s + self._away_s - self._clock()
        if left_s <= 0:
            raise BrokerError(
                "broker-away",
                f"{self._broker} was not reached for {self._away_s:g} s: {reason}",
                "Is it running, and are host and port right? What was taken in is kept.",
            )
        longest_s = min(FIRST_WAIT_S * 2.0 ** min(self._failures, 10), LONGEST_WAIT_S)
        self._failures += 1
        self._wait(min(longest_s * (1 + self._chance()) / 2, left_s))


def _parser(
    form: Form, spec: IntakeSpec, columns: Sequence[str], name: str
) -> CsvParser | JsonParser:
    if form == "jsonl":
        return JsonParser(spec)
    names = [one for one in columns or spec.columns if one != spec.time_column]
    return CsvParser(spec, CSV_DELIMITER.join((spec.time_column, *names)).encode(), name)
