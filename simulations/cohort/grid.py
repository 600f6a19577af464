"""A Flower grid that answers for a whole cohort at once, with messages that stay objects.

What a deployment would send is neither deflated nor inflated here, and yet counted to the byte
(``scale``). Nobody can reach into anybody's state all the same, because what crosses cannot be
changed: a message's records are read once, when it is pushed, into a read-only array over bytes
that Flower holds as ``bytes`` and a config in a mapping proxy; that is all the fleet ever gets. Its
answer is copied into new records before the server sees it.

``train``, ``evaluate`` and ``query.status`` go this way. All else, what is malformed among them,
goes through the in-process grid's real wire to a real ``ClientApp``.

In a trace's field, trainings and evaluations are answered when they would be there (``schedule``).
Who a device is, it says at once: a deployment knows it from the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import islice

from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from clients import bridge
from fleet.errors import InputError, RoundError
from server import flower
from simulations.cohort.answers import ask
from simulations.cohort.fleet import CohortFleet, RunConfigValues, windows_of
from simulations.cohort.scale import Scale
from simulations.cohort.schedule import Delivery, Errand, Schedule
from simulations.cohort.sealed import Sealed, seal
from simulations.inprocess import InProcessGrid, Traffic
from simulations.traces.field import Field, Journey

__all__ = ["DEVICES_AT_ONCE", "MAX_QUEUED_MESSAGES", "CohortGrid"]

# A message that waits takes about 2 kB besides its records, which it shares.
MAX_QUEUED_MESSAGES = 100_000
# Devices per call of the fleet: progress is shown and interrupts land between two calls.
DEVICES_AT_ONCE = 256
# One round sends few distinct contents; more would only hold memory.
MAX_KNOWN_CONTENTS = 8
# Kinds of message that one call of the fleet answers for many devices.
TOGETHER = frozenset({"train", "evaluate"})


@dataclass(frozen=True, eq=False)
class _Waiting:
    message: Message
    sealed: Sealed
    pushed_at: float

    @property
    def kind(self) -> str:
        """The message's type."""
        return self.message.metadata.message_type


class CohortGrid(Grid):
    """Run a fleet of virtual devices in this process, many devices per call.

    It answers as :class:`~simulations.inprocess.InProcessGrid` does over the same devices, with
    the same node ids, ledger and clock. Not for use from many threads.

    Args:
        fleet: What answers.
        devices: Number of virtual devices.
        app: What answers messages that a fleet has no answer for.
        run_config: Run config of that app.
        seed: Root seed that node ids derive from.
        offline: Tells, for a partition id, whether that device is offline now.
        at_once: Most devices per call of the fleet.
        field: When devices are online and how fast they are; ``offline`` is not asked then.
    """

    def __init__(
        self,
        fleet: CohortFleet,
        devices: int,
        *,
        app: ClientApp = bridge.app,
        run_config: RunConfigValues | None = None,
        seed: int = 0,
        offline: Callable[[int], bool] | None = None,
        at_once: int = DEVICES_AT_ONCE,
        field: Field | None = None,
    ) -> None:
        if at_once < 1:
            raise InputError("at-once", f"a call is for one device or more, not {at_once}")
        if field is not None:
            offline = field.offline_by(self.clock)
        self._schedule = None if field is None else Schedule(field, at_once)
        self._fleet = fleet
        self._at_once = at_once
        self._single = InProcessGrid(
            app, devices, run_config=run_config, seed=seed, offline=offline
        )
        self._queue: dict[str, _Waiting] = {}
        # What the schedule answers.
        self._under_way: dict[str, _Waiting] = {}
        self._known: dict[Hashable, Sealed] = {}
        self._scale = Scale()
        self._made = 0

    def set_run(self, run: flower.Run) -> None:
        """Set the run that this grid's messages belong to."""
        self._single.set_run(run)

    @property
    def run(self) -> flower.Run:
        """A copy of the run's record."""
        return self._single.run

    @property
    def ledger(self) -> dict[str, Traffic]:
        """Traffic so far by type: ``train``, ``evaluate`` and ``query``, actions included."""
        return self._single.ledger

    def clock(self) -> float:
        """Return simulated time in seconds, from 0; only :meth:`wait` advances it."""
        return self._single.clock()

    def wait(self, seconds: float) -> None:
        """Let ``seconds`` (not negative) of simulated time pass at once."""
        self._single.wait(seconds)

    def close(self) -> None:
        """End the fleet, and with it the processes of one that has some."""
        self._fleet.close()

    def weigh(self, message: Message) -> int:
        """Return the wire bytes of a message that passed through this grid, counted as it did."""
        return self._single.weigh(message)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; deprecated by Flower in favour of the ``Message`` constructor."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the sorted ids of the nodes that are online."""
        return self._single.get_node_ids()

    def get_nodes(self) -> list[flower.NodeInfo]:
        """Describe the nodes that are online."""
        return self._single.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages, also for devices that are offline, and return their ids in order.

        Records that several messages of one call share are read once, at the first of them.

        Raises:
            ValueError: When a message has no ttl or no group, or its node does not exist.
            RoundError: When more than ``MAX_QUEUED_MESSAGES`` would wait.
        """
        if self._schedule is not None:
            for message_id in self._schedule.forget_expired(self.clock()):
                del self._under_way[message_id]
        # Held with their records, so that no two ids of Python's are those of one object.
        read: dict[int, tuple[RecordDict, Sealed | None]] = {}
        return [self._push(message, read) for message in messages]

    def _push(self, message: Message, read: dict[int, tuple[RecordDict, Sealed | None]]) -> str:
        self._single.check(message)
        sealed = None
        if message.metadata.message_type in {*TOGETHER, "query.status"} and message.has_content():
            content = message.content
            if id(content) not in read:
                read[id(content)] = (content, self._seal(content))
            sealed = read[id(content)][1]
        if sealed is None:
            (message_id,) = self._single.push_messages([message])
            return message_id
        waits = message.metadata.message_id
        if waits in self._queue or waits in self._under_way:
            raise ValueError(f"message {waits} waits already: push each message once")
        if len(self._queue) + len(self._under_way) >= MAX_QUEUED_MESSAGES:
            raise RoundError(
                "queue-full",
                f"at most {MAX_QUEUED_MESSAGES} messages may wait for devices",
                "Pull replies before pushing more, or send to fewer devices at once.",
            )
        flower.stamp(message, message_id := self._new_id())
        size = self._scale.weigh(message, sealed.signature)
        self._single.count(message, size, up=False)
        waiting = _Waiting(flower.twin(message), sealed, self.clock())
        if self._schedule is None or message.metadata.message_type not in TOGETHER:
            self._queue[message_id] = waiting
        else:
            self._under_way[message_id] = waiting
            self._schedule.add(message_id, self._errand(waiting, size))
        return message_id

    def _errand(self, waiting: _Waiting, size: int) -> Errand:
        data, at = waiting.message.metadata, waiting.pushed_at
        partition = self._single.partition_of(waiting.message)
        training = data.message_type == "train"
        windows = windows_of(self._fleet, waiting.sealed.payload, partition, training=training)
        journey = Journey(at, size, windows, training, at + data.ttl)
        goes_with = (data.message_type, id(waiting.sealed))
        return Errand(partition, goes_with, f"{data.message_type}/{data.group_id}/{at!r}", journey)

    def _seal(self, content: RecordDict) -> Sealed | None:
        found = seal(content)
        known = found and self._known.setdefault(*found)
        while len(self._known) > MAX_KNOWN_CONTENTS:
            del self._known[next(iter(self._known))]
        return known

    def _new_id(self) -> str:
        """Return an id as long as Flower's, which are digests of what is never written here."""
        self._made += 1
        return f"{self._made:064x}"

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Answer the earliest queued message of ``message_ids`` and those that go with it.

        A plan is answered by ``at_once`` devices per call at most, an evaluation likewise, and all
        else by one. Ids that do not wait are ignored.

        Raises:
            StorageError: When a device found the disk full: every later device would as well.
        """
        wanted = message_ids if isinstance(message_ids, Set) else set(message_ids)
        if self._schedule is not None:
            found = self._schedule.pull(wanted, self.clock(), self._make)
            if found:
                return [reply for each in found for reply in self._handed_over(each)]
        mine = (each for each in self._queue if each in wanted)
        first = next(mine, None)
        if first is None:
            return self._single.pull_messages(wanted)
        chosen = [first, *islice(self._going_with(self._queue[first], mine), self._at_once - 1)]
        return self._answer([self._queue.pop(message_id) for message_id in chosen])

    def _going_with(self, head: _Waiting, others: Iterable[str]) -> Iterator[str]:
        """Yield those of ``others`` that one call of the fleet can answer beside ``head``."""
        if head.kind not in TOGETHER:
            return
        for message_id in others:
            other = self._queue[message_id]
            if other.sealed is head.sealed and other.kind == head.kind:
                yield message_id

    def _make(self, message_ids: list[str]) -> list[tuple[Message, int]]:
        """Make the answers of scheduled messages; each with its bytes on the wire."""
        together = [self._under_way[each] for each in message_ids]
        for each in together:
            self._single.expiry(each.message, self.clock() - each.pushed_at)
        replies = [self._reply(*each) for each in zip(together, self._ask(together), strict=True)]
        return [(reply, self._scale.weigh(reply)) for reply in replies]

    def _handed_over(self, delivery: Delivery) -> Iterator[Message]:
        waiting = self._under_way.pop(delivery.message_id)
        if delivery.answer is None:
            expired = self._single.expiry(waiting.message, self.clock() - waiting.pushed_at)
            yield from [] if expired is None else [expired]
            return
        yield delivery.answer
        if delivery.doubled:
            again = flower.inflate(flower.deflate(delivery.answer))
            self._single.count(again, self._scale.weigh(again), up=True)
            yield again

    def _answer(self, together: list[_Waiting]) -> list[Message]:
        now = self.clock()
        refusals = [self._single.refusal(each.message, now - each.pushed_at) for each in together]
        asked = [each for each, refusal in zip(together, refusals, strict=True) if refusal is None]
        answers = iter(self._ask(asked))
        return [
            self._reply(each, next(answers)) if refusal is None else refusal
            for each, refusal in zip(together, refusals, strict=True)
        ]

    def _ask(self, asked: list[_Waiting]) -> list[RecordDict | Error]:
        if not asked:
            return []
        kind, payload = asked[0].kind, asked[0].sealed.payload
        partitions = [self._single.partition_of(each.message) for each in asked]
        return ask(self._fleet, kind, payload, partitions)

    def _reply(self, waiting: _Waiting, answer: RecordDict | Error) -> Message:
        reply = Message(answer, reply_to=waiting.message)
        flower.stamp(reply, self._new_id())
        self._single.count(reply, self._scale.weigh(reply), up=True)
        return reply

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push ``messages`` and pull until all are answered or ``timeout`` simulated s passed."""
        outstanding = dict.fromkeys(self.push_messages(messages))
        end = None if timeout is None else self.clock() + timeout
        replies: list[Message] = []
        while outstanding and (end is None or self.clock() < end):
            for reply in self.pull_messages(outstanding.keys()):
                outstanding.pop(reply.metadata.reply_to_message_id, None)
                replies.append(reply)
        return replies
