"""Replies at a SuperLink: what is announced of each, and its objects, one at a time.

Flower's own grid reads a reply in one go: it waits for objects that a device never sends, and
raises for one that is no message. Like :mod:`server.flower` this module holds private names of
Flower, and ``tests/server/test_flower_replies_contract.py`` holds it to them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import httpx
from flwr.app import Array, Error, Message, Metadata
from flwr.app.message import make_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)

from server.flower import deflate, inflate, stamp

__all__ = ["GRID", "Announced", "SuperLinkReplies", "Unreadable", "superlink_replies"]

GRID = "flwr.superlink.grid.http_grid"
"""Module of the grid that speaks to a SuperLink."""
# What a device wrote may be repeated in an error of ours.
LARGEST_DETAIL = 200


class Unreadable(Exception):
    """A reply that never becomes a message; the text says why."""


@dataclass(frozen=True)
class Announced:
    """What a SuperLink knows of a reply before any of it is read.

    Args:
        reply: Id of the reply.
        answers: Id of the message that it answers; the SuperLink saw to it that its device did.
        objects: Ids of the objects that it is made of, each once, children first.
        nodes: Nodes of its tree, or one more than were to be counted.
    """

    reply: str
    answers: str
    objects: tuple[str, ...]
    nodes: int


class SuperLinkReplies:
    """The replies of one run at its SuperLink; every call is one short request.

    Args:
        grid: The grid that speaks to the SuperLink.
    """

    def __init__(self, grid: Any) -> None:
        self._grid = grid

    def announced(self, ids: Iterable[str], most: int) -> list[Announced]:
        """Return what has been announced since; the SuperLink forgets what it has told.

        Args:
            ids: Of the messages that were sent.
            most: Objects of a reply that are counted.
        """
        request = PullAppMessagesRequest(message_ids=sorted(ids))
        try:
            found = self._grid._runtime_client.PullMessages(request)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
                return []  # as Flower's grid does: the round ends at its deadline, not the service
            raise
        told = []
        for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            nodes = [each.object_id for each in islice(iterate_object_tree(tree), most + 1)]
            known = tuple(dict.fromkeys(nodes))
            metadata = proto.metadata
            told.append(
                Announced(metadata.message_id, metadata.reply_to_message_id, known, len(nodes))
            )
        return told

    def fetch(self, name: str) -> bytes | None:
        """Return an object; None while its device has not sent it.

        Raises:
            Unreadable: When the SuperLink has it no longer, or refuses to tell.
        """
        client, run = self._grid._runtime_client, self._grid.run.run_id
        try:
            return make_pull_object_fn_protobuf(client.PullObject, self._grid.node, run)(name)
        except ObjectUnavailableError:
            return None
        except ObjectPullError as error:
            raise Unreadable("an object of it is gone") from error
        except httpx.HTTPStatusError as error:
            raise Unreadable(f"the SuperLink answers {error.response.status_code}") from error

    def done(self, announced: Announced) -> None:
        """Let the SuperLink forget a reply and its objects, also those still to come."""
        request = ConfirmMessageReceivedRequest(
            node=self._grid.node,
            run_id=self._grid.run.run_id,
            message_object_id=announced.reply,
        )
        # What it cannot forget now it forgets with the run.
        with suppress(httpx.HTTPStatusError):
            self._grid._runtime_client.ConfirmMessageReceived(request)

    def whole(self, announced: Announced, objects: Mapping[str, bytes], most: int) -> Message:
        """Make the message of a reply.

        Args:
            announced: The reply.
            objects: All its objects.
            most: Bytes of its arrays.

        Raises:
            Unreadable: When it is none, larger, or answers what another device was asked.
        """
        with _readable():
            joined = _joined_bytes(objects)
        # Before Flower joins them: 100 kB of objects can say that they are gigabytes.
        if joined > most:
            raise Unreadable(f"its arrays have {joined} bytes, more than {most}")
        with _readable():
            made = inflate_object_from_contents(announced.reply, dict(objects))
        if not isinstance(made, Message):
            raise Unreadable(f"it is a {type(made).__name__}, not a message")
        if made.metadata.reply_to_message_id != announced.answers:
            raise Unreadable("it says that it answers another message than it was announced for")
        stamp(made, announced.reply)
        return made

    def refused(self, announced: Announced, reason: str) -> Message:
        """Make the error reply that stands for one that cannot be read."""
        metadata = Metadata(
            run_id=self._grid.run.run_id,
            message_id="",
            src_node_id=SUPERLINK_NODE_ID,
            dst_node_id=SUPERLINK_NODE_ID,
            reply_to_message_id=announced.answers,
            group_id="",
            created_at=now().timestamp(),
            ttl=0.0,
            message_type=SYSTEM_MESSAGE_TYPE,
        )
        return inflate(deflate(make_message(metadata, error=Error(ErrorCode.UNKNOWN, reason))))


def superlink_replies(grid: Grid) -> SuperLinkReplies | None:
    """Return the replies of a grid at its SuperLink; None for a grid that has none.

    >>> superlink_replies(object()) is None
    True
    """
    # The module takes a second to load, and whoever has made such a grid has loaded it.
    module = sys.modules.get(GRID)
    if module is None or not isinstance(grid, module.HttpGrid):
        return None
    return SuperLinkReplies(grid)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # Flower raises anything for what a device made up
        text = f"{type(error).__name__}: {error}"[:LARGEST_DETAIL]
        raise Unreadable(f"its objects make no message: {text}") from error


def _joined_bytes(objects: Mapping[str, bytes]) -> int:
    """Count the bytes of all arrays once joined: an array may name one chunk a million times."""
    heads = {
        name: get_object_head_values_from_object_content(content)[:2]
        for name, content in objects.items()
    }
    total = 0
    for name, (kind, children) in heads.items():
        if kind != Array.__qualname__:
            continue
        if {heads[child][0] for child in children} - {ArrayChunk.__qualname__}:
            raise ValueError("an array consists of chunks")
        body = json.loads(get_object_body(objects[name], Array))
        total += sum(len(objects[children[index]]) for index in body["arraychunk_ids"])
    return total
