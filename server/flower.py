"""The one place that touches what Flower does not promise to keep.

Flower's public names are ``flwr.app``, ``flwr.clientapp`` and ``flwr.serverapp``; everything else
may change with any of its minor releases. What we need of it stands here, and the contract tests
hold each of these names to what we rely on.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import cast

from flwr.app import Error, Message, Metadata, RecordDict

# A message that is neither an instruction nor a reply of a device has no public constructor.
from flwr.app.message import make_message

# The codes that error replies carry are numbered here only. An array longer than a chunk travels
# as several objects, of which equal ones travel once.
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as ARRAY_CHUNK_BYTES
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

# A message's tree of objects, as it is announced before the objects travel.
from flwr.proto.message_pb2 import ObjectTree

# `Grid.get_nodes` is public and returns these; the class itself is not exported.
from flwr.proto.node_pb2 import NodeInfo

# A reply to a message that the SuperLink no longer knows is of this type.
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE, NodeStatus
from flwr.supercore.date import now

# How a message becomes the content-addressed objects that travel; there is no public way to
# learn what a message costs on the wire.
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

# `Grid.set_run` is public and takes one; the class itself is not exported.
from flwr.supercore.run import Run

# Since 1.38 a message cannot be made outside a process that Flower launched, unless this is set.
from flwr.supercore.task_identity import TaskIdentity

__all__ = [
    "ARRAY_CHUNK_BYTES",
    "QUIET_ENVIRONMENT",
    "Content",
    "ErrorCode",
    "NodeInfo",
    "Parcel",
    "Run",
    "WireBytes",
    "become_task",
    "deflate",
    "inflate",
    "online_node",
    "stamp",
    "superlink_error",
    "task_run_id",
    "twin",
    "wire_bytes",
]

QUIET_ENVIRONMENT: Mapping[str, str] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # Otherwise each run installs the app's dependencies afresh, PyTorch included.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Environment of every process of Flower: no telemetry, no update check, no installing."""


@dataclass(frozen=True)
class WireBytes:
    """What one message costs on the wire, before HTTP's own framing.

    Args:
        objects: Number of distinct objects; each is one request per hop.
        object_bytes: Bytes of all deflated objects together.
        tree_bytes: Bytes of the serialized tree that announces them.
    """

    objects: int
    object_bytes: int
    tree_bytes: int

    @property
    def total(self) -> int:
        """Bytes of objects and tree together."""
        return self.object_bytes + self.tree_bytes


@dataclass(frozen=True)
class Content:
    """The deflated records of a message, shared by all messages that carry the same.

    Args:
        objects: Deflated objects by their ids.
        tree: The tree that announces them.
    """

    objects: Mapping[str, bytes]
    tree: ObjectTree


@dataclass(frozen=True)
class Parcel:
    """One deflated message: nothing in it is shared with the message it was made of.

    Args:
        message_id: Flower's id of the message: the SHA-256 of ``head``.
        head: The message's own object: metadata and, in an error reply, the error.
        content: The deflated records; ``None`` in an error reply.
    """

    message_id: str
    head: bytes
    content: Content | None

    @property
    def wire(self) -> WireBytes:
        """What this parcel costs on the wire."""
        objects = dict(self.content.objects) if self.content else {}
        objects[self.message_id] = self.head
        children = [self.content.tree] if self.content else []
        tree = ObjectTree(object_id=self.message_id, children=children)
        return WireBytes(len(objects), sum(map(len, objects.values())), tree.ByteSize())


def deflate(message: Message, known: MutableMapping[str, Content] | None = None) -> Parcel:
    """Deflate ``message`` as Flower does before it sends it.

    Args:
        message: Any message.
        known: Deflated contents by their ids. A content found here is not deflated again, and
            a new one is added: pass the same mapping for the messages of one round.
    """
    known = {} if known is None else known
    with no_object_id_recompute():
        content = _deflate_content(message.content, known) if message.has_content() else None
        return Parcel(message.object_id, message.deflate(), content)


def _deflate_content(content: RecordDict, known: MutableMapping[str, Content]) -> Content:
    content_id = content.object_id
    if content_id not in known:
        nested = get_all_nested_objects(content)
        objects = {object_id: thing.deflate() for object_id, thing in nested.items()}
        known[content_id] = Content(objects, get_object_tree(content))
    return known[content_id]


def inflate(parcel: Parcel) -> Message:
    """Make the message of a parcel anew, with the id that Flower gives it.

    >>> become_task()
    >>> sent = Message(RecordDict(), 7, "query", ttl=60, group_id="1")
    >>> inflate(deflate(sent)).metadata.dst_node_id
    7
    """
    objects = dict(parcel.content.objects) if parcel.content else {}
    objects[parcel.message_id] = parcel.head
    message = cast(Message, inflate_object_from_contents(parcel.message_id, objects))
    stamp(message, parcel.message_id)
    return message


def stamp(message: Message, message_id: str) -> None:
    """Give a message its id, which is the SuperLink's to give, so Flower offers no setter."""
    message.metadata.__dict__["_message_id"] = message_id


def twin(message: Message) -> Message:
    """Return a message of the same metadata, its own, and no records.

    >>> become_task()
    >>> sent = Message(RecordDict(), 7, "query", ttl=60, group_id="1")
    >>> same = twin(sent)
    >>> sent.metadata.ttl = 5
    >>> same.metadata.ttl
    60
    """
    metadata = Metadata.__new__(Metadata)
    metadata.__dict__.update(message.metadata.__dict__)
    return make_message(metadata, content=RecordDict())


def wire_bytes(message: Message) -> WireBytes:
    """Count what ``message`` costs on the wire, by deflating it as Flower does.

    >>> become_task()
    >>> wire_bytes(Message(RecordDict(), 7, "query", ttl=60, group_id="1")).objects
    2
    """
    return deflate(message).wire


def become_task(run_id: int = 1, node_id: int = 1, task_id: int = 1) -> None:
    """Let this process make messages; does nothing in a process that Flower launched.

    Args:
        run_id: Run that messages belong to.
        node_id: Node that messages come from; 1 is the server.
        task_id: Task that messages come from.
    """
    for name, value in (("run_id", run_id), ("node_id", node_id), ("task_id", task_id)):
        try:
            getattr(TaskIdentity, name)
        except RuntimeError:
            setattr(TaskIdentity, name, value)


def task_run_id() -> int:
    """Return the run that this process's messages belong to; needs :func:`become_task`."""
    return TaskIdentity.run_id


def online_node(node_id: int, name: str = "") -> NodeInfo:
    """Describe a node that is online, as ``Grid.get_nodes`` returns it.

    Args:
        node_id: Flower's id of the node.
        name: The operator's name of the node; nodes of a simulation have none.
    """
    return NodeInfo(node_id=node_id, name=name, status=NodeStatus.ONLINE)


def superlink_error(message: Message, code: int, reason: str) -> Message:
    """Make the error reply that a SuperLink gives in a device's stead.

    Like Flower's own it comes from node 1, not from the device; a reply to an expired message
    has also lost its group and type. Only ``reply_to_message_id`` tells what it answers.

    Args:
        message: The message that no device will answer.
        code: One of :class:`ErrorCode`.
        reason: One sentence.
    """
    expired = code == ErrorCode.MESSAGE_UNAVAILABLE
    metadata = Metadata(
        run_id=message.metadata.run_id,
        message_id="",
        src_node_id=SUPERLINK_NODE_ID,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=message.metadata.message_id,
        group_id="" if expired else message.metadata.group_id,
        created_at=now().timestamp(),
        ttl=0.0 if expired else message.metadata.ttl,
        message_type=SYSTEM_MESSAGE_TYPE if expired else message.metadata.message_type,
    )
    return inflate(deflate(make_message(metadata, error=Error(code, reason))))
