"""A SuperLink's Runtime API in memory, behind Flower's own grid; devices send what they like."""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
)
from flwr.superlink.grid.http_grid import HttpGrid

from server import flower

__all__ = ["NODE", "SuperLinkSide", "asked", "reply_to"]

NODE = 0x7EED_0000_0000_0001


def asked(number: int = 0) -> Message:
    """Make a message as it is sent to a device, with its id."""
    flower.become_task()
    content = RecordDict({"config": ConfigRecord({"number": number})})
    sent = Message(content, NODE + number, "train", ttl=60, group_id="1")
    return flower.inflate(flower.deflate(sent))


def reply_to(message: Message, *entries: int, size: int = 512, **config: int | str) -> Message:
    """Make a device's reply: a config, and an array of ``size`` if it has entries."""
    content = RecordDict({"config": ConfigRecord({"ok": True, **config})})
    if entries:
        content["arrays"] = ArrayRecord({"packed": Array(np.full(size, entries[0], np.float32))})
    return Message(content, reply_to=message)


@dataclass
class SuperLinkSide:
    """What a SuperLink has of one run.

    Attributes:
        objects: Contents by id; empty while they are announced only.
        pulls: Ids of each look for replies.
        fetched: Ids of the objects that were asked for, in order.
        confirmed: Ids of the replies that it was told to forget.
        broken: Status that it answers a request for an object with; 0: it is well.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    pulls: list[set[str]] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    confirmed: list[str] = field(default_factory=list)
    broken: int = 0
    _announced: dict[str, tuple[ProtoMessage, ObjectTree]] = field(default_factory=dict)

    def grid(self) -> HttpGrid:
        """Return Flower's grid before it."""
        flower.become_task()
        grid = HttpGrid(token="test")
        grid.set_run(flower.Run.create_empty(flower.task_run_id()))
        grid._client = self  # type: ignore[assignment]
        return grid

    def announce(self, reply: Message, content: InflatableObject | None = None) -> list[str]:
        """Take a reply's announcement; return the ids of its objects, children first.

        Args:
            reply: What it says to be.
            content: What it is made of, if not of the reply.
        """
        made = reply if content is None else content
        objects = get_all_nested_objects(made)
        reply.metadata.__dict__["_message_id"] = made.object_id
        proto = message_to_proto(remove_content_from_message(reply))
        self._announced[reply.metadata.reply_to_message_id] = proto, get_object_tree(made)
        for name in objects:
            self.objects.setdefault(name, b"")
        return list(objects)

    def send(self, made: InflatableObject, *names: str) -> None:
        """Take the objects of a reply, or some of them."""
        for name, each in get_all_nested_objects(made).items():
            if not names or name in names:
                self.objects[name] = each.deflate()

    def answer(self, reply: Message, content: InflatableObject | None = None) -> None:
        """Take a reply with all its objects."""
        self.announce(reply, content)
        self.send(reply if content is None else content)

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        ids = set(request.message_ids)
        self.pulls.append(ids)
        found = [self._announced.pop(each) for each in sorted(ids & self._announced.keys())]
        return PullAppMessagesResponse(
            messages_list=[proto for proto, _ in found],
            message_object_trees=[tree for _, tree in found],
        )

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        self.fetched.append(request.object_id)
        if self.broken:
            answer = httpx.Response(self.broken, request=httpx.Request("POST", "https://superlink"))
            answer.raise_for_status()
        content = self.objects.get(request.object_id)
        return PullObjectResponse(
            object_found=content is not None,
            object_available=bool(content),
            object_content=content or b"",
        )

    def ConfirmMessageReceived(
        self, request: ConfirmMessageReceivedRequest
    ) -> ConfirmMessageReceivedResponse:
        self.confirmed.append(request.message_object_id)
        return ConfirmMessageReceivedResponse()
