"""Devices that speak Flower's fleet API from outside the front, as threads of a test.

Each signs with a key of its own as Flower's SuperNode does, so it is as real to a server as one
that has a process; and it may do what no SuperNode would.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from clients.agent.config import PRIVATE_KEY, PUBLIC_KEY
from clients.agent.keys import make_keys, read_private_key

__all__ = ["WireDevice", "at_work"]

LOOK_S = 0.2
BEAT_S = 30.0
JOIN_S = 30.0
REFUSED = (401, 412)

Answer = Callable[["WireDevice", Message], Message | None]


@dataclass
class WireDevice:
    """A device; its thread answers messages until the server refuses it or the test ends it.

    Args:
        name: Of the device.
        state: Folder of its key pair; the keys are made.
        server: ``HOST:PORT`` of the front.
        root: Certificate (PEM) of the server's authority.
        answer: What it does with a message; ``None`` for no answer.

    Attributes:
        statuses: HTTP statuses of its calls that failed, in order.
        refused: Set when the server does not know its key (any more).
        ended: Set to end it.
    """

    name: str
    state: Path
    server: str
    root: bytes
    answer: Answer
    statuses: list[int] = field(default_factory=list)
    refused: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.state.mkdir(mode=0o700)
        make_keys(self.state, self.name)
        private = read_private_key(self.state / PRIVATE_KEY)
        signing = NodeAuthHttpInterceptor(private, private.public_key())
        self.client = FleetHttpClient.from_server_address(
            self.server, False, self.root, interceptors=[signing]
        )
        self._public = public_key_to_bytes(private.public_key())
        self.node = Node()

    @property
    def key(self) -> Path:
        """Its public key, as an operator enrols it."""
        return self.state / PUBLIC_KEY

    def run(self) -> None:
        """Come, and answer what is asked."""
        activate = ActivateNodeRequest(public_key=self._public, heartbeat_interval=BEAT_S)
        beat = BEAT_S / 3 / LOOK_S
        looks = 0
        while not self.ended.is_set() and not self.refused.is_set():
            with self._noted():
                if not self.node.node_id:
                    found = self.client.ActivateNode(activate)
                    self.node = Node(node_id=found.node_id)
                looks += 1
                if looks % beat < 1:
                    self._beat()
                self._once()
            self.ended.wait(LOOK_S)

    def push(self, message: Message) -> None:
        """Push a reply as Flower's SuperNode does, its large arrays in pieces."""
        self.send(message, message)

    def send(self, message: Message, content: InflatableObject) -> None:
        """Announce a reply as :meth:`announce` does, and send all that it is made of."""
        said = self.announce(message, content)
        objects = get_all_nested_objects(content)
        for name in said.objects_to_push:
            self.push_object(message, said.session_id, name, objects[name].deflate())

    def announce(self, message: Message, content: InflatableObject) -> PushMessagesResponse:
        """Announce a reply.

        Args:
            message: The reply.
            content: What is said to be it; the message itself where nothing is wrong.
        """
        message.metadata.__dict__["_message_id"] = content.object_id
        asked = PushMessagesRequest(
            node=self.node,
            messages_list=[message_to_proto(remove_content_from_message(message))],
            message_object_trees=[get_object_tree(content)],
            clientapp_runtime_list=[0.0],
        )
        return self.client.PushMessages(asked)

    def push_object(self, message: Message, session: str, name: str, content: bytes) -> None:
        """Push one object of a reply in one request."""
        self.client.PushObject(
            PushObjectRequest(
                node=self.node,
                run_id=message.metadata.run_id,
                session_id=session,
                object_id=name,
                object_content=content,
            )
        )

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as error:
            self.statuses.append(error.response.status_code)
            if error.response.status_code in REFUSED:
                self.refused.set()
        except httpx.TransportError:
            self.statuses.append(0)

    def _beat(self) -> None:
        beat = SendNodeHeartbeatRequest(node=self.node, heartbeat_interval=BEAT_S)
        self.client.SendNodeHeartbeat(beat)

    def _once(self) -> None:
        found = self.client.PullMessages(PullMessagesRequest(node=self.node))
        for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            run = proto.metadata.run_id
            message = pull_and_inflate_object_from_tree(
                tree,
                make_pull_object_fn_protobuf(self.client.PullObject, self.node, run),
                make_confirm_message_received_fn_protobuf(
                    self.client.ConfirmMessageReceived, self.node, run
                ),
                return_type=Message,
            )
            message.metadata.__dict__["_message_id"] = tree.object_id
            reply = self.answer(self, message)
            if reply is not None:
                self.push(reply)


@contextlib.contextmanager
def at_work(devices: Sequence[WireDevice]) -> Iterator[None]:
    """Let devices work during the block."""
    threads = [threading.Thread(target=each.run, name=each.name, daemon=True) for each in devices]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for each in devices:
            each.ended.set()
        for thread in threads:
            thread.join(JOIN_S)
        for each in devices:
            each.client.close()
