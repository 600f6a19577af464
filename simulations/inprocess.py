"""A Flower grid inside this process: real messages and a real ``ClientApp``, no server, no Ray.

Every message is deflated and inflated as on the wire, so no device can reach into the server's
arrays and the bytes counted are those that a deployment sends. Time is simulated: it stands still
while devices compute, so that a slow computer never lets a round time out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace

from flwr.app import DEFAULT_TTL, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fleet.errors import InputError, RoundError, StorageError
from fleet.seeds import derive_seed
from server import flower

__all__ = ["MAX_QUEUED_MESSAGES", "InProcessGrid", "Traffic"]

logger = logging.getLogger(__name__)

MAX_QUEUED_MESSAGES = 10_000
# One round sends few distinct contents; more would only hold memory.
MAX_KNOWN_CONTENTS = 8
# Weights of messages that nobody has asked about yet; beyond, they are counted anew.
MAX_KNOWN_WEIGHTS = 100_000


@dataclass(frozen=True)
class Traffic:
    """What messages of one type cost on the wire.

    Args:
        messages_down: Messages pushed to devices, delivered or not.
        bytes_down: Their wire bytes.
        messages_up: Replies that devices made, errors of the ``ClientApp`` included.
        bytes_up: Their wire bytes.
    """

    messages_down: int = 0
    bytes_down: int = 0
    messages_up: int = 0
    bytes_up: int = 0

    def with_message(self, size: int, *, up: bool) -> Traffic:
        """Return these counts and one more message of ``size`` bytes."""
        if up:
            return replace(self, messages_up=self.messages_up + 1, bytes_up=self.bytes_up + size)
        messages, total = self.messages_down + 1, self.bytes_down + size
        return replace(self, messages_down=messages, bytes_down=total)


@dataclass(frozen=True)
class _Waiting:
    parcel: flower.Parcel
    pushed_at: float


class InProcessGrid(Grid):
    """Run a ``ClientApp`` for many virtual devices in this process, one message at a time.

    Each device has a ``Context`` of its own whose state persists from message to message; one
    without state is made anew for each, so that idle devices take no memory. Node ids are stable
    for a seed and in no relation to partition ids. Not for use from many threads.

    Args:
        app: The app that every device runs.
        devices: Number of virtual devices.
        run_config: Each context's ``run_config``.
        node_config: Added to each context's ``node_config``.
        seed: Root seed that node ids derive from.
        offline: Tells, for a partition id, whether that device is offline now.
    """

    def __init__(
        self,
        app: ClientApp,
        devices: int,
        *,
        run_config: Mapping[str, bool | int | float | str] | None = None,
        node_config: Mapping[str, bool | int | float | str] | None = None,
        seed: int = 0,
        offline: Callable[[int], bool] | None = None,
    ) -> None:
        if devices < 1:
            raise InputError("no-devices", f"a fleet has at least one device, not {devices}")
        flower.become_task()
        self._app = app
        self._run_config = dict(run_config or {})
        self._node_config = {**(node_config or {}), "num-partitions": devices}
        self._offline = offline or (lambda partition: False)
        nodes = (derive_seed(seed, 0, f"partition-{each}", "node-id") for each in range(devices))
        self._partitions = {node: partition for partition, node in enumerate(nodes)}
        self._contexts: dict[int, Context] = {}
        self._queue: dict[str, _Waiting] = {}
        self._known: dict[str, flower.Content] = {}
        self._ledger = {kind: Traffic() for kind in ("train", "evaluate", "query")}
        self._weights: dict[str, int] = {}
        self._now = 0.0
        self.set_run(flower.Run.create_empty(flower.task_run_id()))

    def set_run(self, run: flower.Run) -> None:
        """Set the run that this grid's contexts belong to."""
        self._run = run

    @property
    def run(self) -> flower.Run:
        """A copy of the run's record."""
        return replace(self._run)

    @property
    def ledger(self) -> dict[str, Traffic]:
        """Traffic so far by type: ``train``, ``evaluate`` and ``query``, actions included."""
        return dict(self._ledger)

    def clock(self) -> float:
        """Return simulated time in seconds, from 0; only :meth:`wait` advances it."""
        return self._now

    def wait(self, seconds: float) -> None:
        """Let ``seconds`` (not negative) of simulated time pass at once."""
        if not seconds >= 0:
            raise ValueError(f"time does not run backwards: cannot wait {seconds} s")
        self._now += seconds

    def close(self) -> None:
        """End the grid, which has nothing but memory."""

    def weigh(self, message: Message) -> int:
        """Return the wire bytes of a message that passed through this grid, counted as it did."""
        known = self._weights.pop(message.metadata.message_id, None)
        return flower.wire_bytes(message).total if known is None else known

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
        return sorted(node for node, at in self._partitions.items() if not self._offline(at))

    def get_nodes(self) -> list[flower.NodeInfo]:
        """Describe the nodes that are online; like Flower's virtual nodes they have no names."""
        return [flower.online_node(node) for node in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages, also for devices that are offline, and return their ids in order.

        Raises:
            ValueError: When a message has no ttl or no group, or its node does not exist.
            RoundError: When more than ``MAX_QUEUED_MESSAGES`` would wait.
        """
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        self.check(message)
        if len(self._queue) >= MAX_QUEUED_MESSAGES:
            raise RoundError(
                "queue-full",
                f"at most {MAX_QUEUED_MESSAGES} messages may wait for devices",
                "Pull replies before pushing more, or send to fewer devices at once.",
            )
        parcel = flower.deflate(message, self._known)
        while len(self._known) > MAX_KNOWN_CONTENTS:
            del self._known[next(iter(self._known))]
        if parcel.message_id in self._queue:
            raise ValueError(f"message {parcel.message_id} waits already: push each message once")
        # Flower writes the id that it gives into the sender's message as well.
        flower.stamp(message, parcel.message_id)
        self._queue[parcel.message_id] = _Waiting(parcel, self._now)
        self.count(message, parcel.wire.total, up=False)
        return parcel.message_id

    def check(self, message: Message) -> None:
        """Refuse a message that no grid of ours takes.

        Raises:
            ValueError: When it has no ttl or no group, or its node does not exist.
        """
        metadata = message.metadata
        if metadata.ttl <= 0 or metadata.ttl == DEFAULT_TTL:
            raise ValueError(f"every message has a ttl of its own, not {metadata.ttl:g} s")
        if not metadata.group_id:
            raise ValueError("every message has a group_id, the round or purpose it belongs to")
        if metadata.dst_node_id not in self._partitions:
            raise ValueError(f"there is no node {metadata.dst_node_id}; ask get_node_ids()")

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the earliest queued message of ``message_ids`` and return its reply.

        At most one per call, so that callers show progress and interrupts land between devices.
        Ids that do not wait are ignored; a SuperLink answers those with an error reply.

        Raises:
            StorageError: When a device found the disk full: every later device would as well.
        """
        wanted = message_ids if isinstance(message_ids, Set) else set(message_ids)
        first = next((each for each in self._queue if each in wanted), None)
        return [] if first is None else [self._answer(self._queue.pop(first))]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push ``messages`` and pull until all are answered or ``timeout`` simulated s passed."""
        outstanding = dict.fromkeys(self.push_messages(messages))
        end = None if timeout is None else self._now + timeout
        replies: list[Message] = []
        while outstanding and (end is None or self._now < end):
            (reply,) = self.pull_messages(outstanding.keys())
            del outstanding[reply.metadata.reply_to_message_id]
            replies.append(reply)
        return replies

    def _answer(self, waiting: _Waiting) -> Message:
        message = flower.inflate(waiting.parcel)
        refusal = self.refusal(message, self._now - waiting.pushed_at)
        if refusal is not None:
            return refusal
        parcel = flower.deflate(self._run_app(message))
        reply = flower.inflate(parcel)
        self.count(reply, parcel.wire.total, up=True)
        return reply

    def refusal(self, message: Message, age: float) -> Message | None:
        """Return the SuperLink's error reply to a message of ``age`` seconds that cannot arrive.

        One that can is dated so that a reply to it lives as long as is left of it.
        """
        expired = self.expiry(message, age)
        if expired is None and self._offline(self.partition_of(message)):
            code = flower.ErrorCode.NODE_UNAVAILABLE
            return flower.superlink_error(message, code, "the node is offline")
        return expired

    def expiry(self, message: Message, age: float) -> Message | None:
        """Return the SuperLink's error reply to a message whose ttl is over at ``age`` seconds.

        Another is dated so that a reply to it lives as long as is left of it.
        """
        # By the wall clock, which goes on here.
        message.metadata.created_at = time.time() - age
        if age < message.metadata.ttl:
            return None
        reason = f"the message expired: it is {age:g} s old"
        return flower.superlink_error(message, flower.ErrorCode.MESSAGE_UNAVAILABLE, reason)

    def partition_of(self, message: Message) -> int:
        """Return the partition id of the device that a message is for."""
        return self._partitions[message.metadata.dst_node_id]

    def _run_app(self, message: Message) -> Message:
        try:
            node_id = message.metadata.dst_node_id
            context = self._context(node_id)
            reply = self._app(message, context)
            if not context.state:
                self._contexts.pop(node_id, None)
            if reply.metadata.reply_to_message_id != message.metadata.message_id:
                raise ValueError("a ClientApp replies to the message that it was given")
            return reply
        except Exception as error:
            if isinstance(error, StorageError) and error.code == "disk-full":
                raise
            logger.debug("the ClientApp raised an exception", exc_info=True)
            code, reason = (
                flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
                f"{type(error)}:<'{error}'>",
            )
            return Message(Error(code, reason), reply_to=message)

    def _context(self, node_id: int) -> Context:
        if node_id not in self._contexts:
            node_config = {**self._node_config, "partition-id": self._partitions[node_id]}
            run_id, config = self._run.run_id, dict(self._run_config)
            self._contexts[node_id] = Context(run_id, node_id, node_config, RecordDict(), config)
        return self._contexts[node_id]

    def count(self, message: Message, size: int, *, up: bool) -> None:
        """Count a message, its id given, of ``size`` bytes on the wire."""
        kind = message.metadata.message_type.split(".")[0]
        so_far = self._ledger.get(kind, Traffic())
        self._ledger[kind] = so_far.with_message(size, up=up)
        # Only plans and updates are weighed; the rest must not pile up.
        if kind == "train":
            self._weights[message.metadata.message_id] = size
            while len(self._weights) > MAX_KNOWN_WEIGHTS:
                del self._weights[next(iter(self._weights))]
