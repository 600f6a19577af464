"""Asks the devices behind a grid: who they are, and one question to many of them.

Every message has a ttl and a group id, and every wait ends at a deadline on the clock that is
passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from pydantic import ValidationError

from fleet.errors import MismatchError
from fleet.federate.records import DeviceStatus, problems_of
from fleet.federate.wire import Payload
from server.messages import content_of, payload_of
from server.overdue import Overdue
from server.pulling import Replies, replies_of

__all__ = ["POLL_S", "Asking", "sent", "status_of"]

# How long is let pass between two looks at the grid.
POLL_S = 1.0
# A message outlives its round's deadline by this much, so that the deadline decides, not the ttl.
TTL_SLACK_S = 60.0
# A question to all devices goes to so many at a time, so that neither side holds ten thousand
# messages. Plans are not held back: their deadline runs from one push.
LARGEST_QUESTION = 1000
# A device that cannot train now may later: its agent starts again, labels come.
ASK_AGAIN_S = 30.0


@dataclass
class Asking:
    """Knows which device is behind which node, and carries questions to them.

    Args:
        grid: Any Flower grid.
        now: Monotonic seconds, real or simulated.
        wait: Lets seconds pass.
        group: Prefix of the group id of every message.

    Attributes:
        nodes: Node of each device that can train.
        serving: Node of each device that serves a model, whether it can train or not.
        unusable: Why a node cannot be used, by its id.
        overdue: Hears what comes too late.
        due: When a node that cannot be used is asked again, monotonic seconds, by its id.
        replies: Reads what is answered, within bounds.
    """

    grid: Grid
    now: Callable[[], float]
    wait: Callable[[float], None]
    group: str
    nodes: dict[str, int] = field(default_factory=dict)
    serving: dict[str, int] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    overdue: Overdue = field(default_factory=Overdue)
    due: dict[str, float] = field(default_factory=dict)
    replies: Replies = field(init=False)

    def __post_init__(self) -> None:
        self.replies = replies_of(self.grid, self.now)

    def pull(self, ids: Iterable[str]) -> list[Message]:
        """Return the replies to messages that are there, as :meth:`Replies.pull` does."""
        return self.replies.pull(ids)

    def let_pass(self, seconds: float) -> None:
        """Let seconds pass, then hear what came too late."""
        self.wait(seconds)
        self.overdue.listen(self.pull, self.now())

    def discover(self, deadline_s: float) -> tuple[str, ...]:
        """Ask nodes that are new who they are; return the usable devices that are online.

        One that could not be used for a reason that may pass is asked again from time to time.
        """
        online, now = set(self.grid.get_node_ids()), self.now()
        waiting = {int(n) for n in self.unusable if now < self.due.get(n, math.inf)}
        known = set(self.nodes.values()) | waiting
        fresh = sorted(online - known)
        empty = Payload(np.zeros(0, np.float32), {})
        to = {str(node): node for node in fresh}
        for node, reply in self.ask(empty, to, "query.status", deadline_s):
            self._introduce(int(node), reply, online)
        return tuple(sorted(d for d, node in self.nodes.items() if node in online))

    def gather(self, enough: int, wait_s: float, look_s: float) -> None:
        """Look for devices until there are enough or the time is up."""
        until = self.now() + wait_s
        while len(self.discover(wait_s)) < enough and self.now() < until:
            self.let_pass(look_s)

    def _introduce(self, node: int, reply: Message, online: set[int]) -> None:
        self.unusable.pop(str(node), None)
        self.due.pop(str(node), None)
        try:
            status = status_of(reply)
        except MismatchError as error:
            self.unusable[str(node)] = error.message
            self.due[str(node)] = self.now() + ASK_AGAIN_S
            return
        # A device that comes back may do so as another node; its old one is offline then.
        if self.nodes.get(status.device) in online:
            self.unusable[str(node)] = f"a second node claims to be {status.device}"
            return
        if status.usable:
            self.nodes[status.device] = node
        else:
            self.unusable[str(node)] = f"{status.device}: {status.reason}"
            if status.serves:  # a device of its own; what a simulation is made of does not change
                self.due[str(node)] = self.now() + ASK_AGAIN_S
        if status.serves:
            self.serving[status.device] = node

    def ask(
        self, payload: Payload, to: Mapping[str, int], kind: str, deadline_s: float
    ) -> Iterable[tuple[str, Message]]:
        """Send to nodes by name; yield (name, reply) until all answered or the deadline passed."""
        until, left, asked = self.now() + deadline_s, iter(to), dict[str, str]()
        while True:
            if names := list(islice(left, LARGEST_QUESTION - len(asked))):
                nodes = [to[name] for name in names]
                messages = self.messages(payload, nodes, kind, kind, deadline_s)
                asked |= sent(self.grid.push_messages(messages), names)
                continue
            if not asked:
                return
            replies = self.pull(asked.keys())
            for reply in replies:
                device = asked.pop(str(reply.metadata.reply_to_message_id), "")
                if device:
                    yield device, reply
            if not replies:
                if self.now() >= until:
                    return
                self.let_pass(POLL_S)

    def messages(
        self, payload: Payload, nodes: Iterable[int], kind: str, group: str, deadline_s: float
    ) -> list[Message]:
        """Make a message to each node; they share their records, which nobody changes."""
        content, ttl = content_of(payload), deadline_s + TTL_SLACK_S
        self.replies.sending(payload.array.nbytes)
        group = f"{self.group}/{group}"
        return [
            Message(content, dst_node_id=node, message_type=kind, ttl=ttl, group_id=group)
            for node in nodes
        ]


def sent(ids: Iterable[str], devices: Iterable[str]) -> dict[str, str]:
    """Map message ids to devices; Flower returns an empty id for what it could not send."""
    return {i: device for i, device in zip(ids, devices, strict=True) if i}


def status_of(reply: Message) -> DeviceStatus:
    """Read what a device says of itself.

    Raises:
        MismatchError: ``status`` when it says nothing, declines or is not understood; ``malformed``
            when its records are not whole.
    """
    if reply.has_error():
        raise MismatchError("status", f"no status: {reply.error.reason}")
    config = payload_of(reply.content).config
    if "declined" in config:
        raise MismatchError("status", f"{config['declined']!s}: {config.get('detail', '')!s}")
    try:
        return DeviceStatus.model_validate(dict(config))
    except ValidationError as error:
        raise MismatchError("status", problems_of(error)) from error
