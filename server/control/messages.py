"""Requests, answers and events into bytes and back; the wire's fields are the records' own.

``tests/server/control/test_proto.py`` holds every message to its record. Nothing that arrives is
trusted to be whole.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from fleet.errors import FleetError, InputError
from server.control import control_pb2 as pb
from server.control.requests import REQUESTS, Request
from server.control.seam import Answer, Event

__all__ = [
    "decode_answer",
    "decode_event",
    "decode_request",
    "decode_watch",
    "encode_answer",
    "encode_event",
    "encode_request",
    "encode_watch",
]


def encode_request(request: Request) -> bytes:
    """Put a request into bytes.

    Raises:
        InputError: ``bad-request`` for text that has no UTF-8.
    """
    message = _class_of(type(request).__name__)
    values = {k: v for k, v in request.model_dump().items() if v is not None}
    try:
        return bytes(message(**values).SerializeToString())
    except (ValueError, TypeError) as error:
        raise _bad(str(error)) from error


def decode_request(verb: str, data: bytes) -> Request:
    """Read a verb's request.

    Raises:
        InputError: ``bad-request``, listing every problem at once.
    """
    try:
        message = _class_of(verb).FromString(data)
    except DecodeError as error:
        raise _bad(str(error)) from error
    values = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        values[field.name] = value if isinstance(value, str | bytes | int | bool) else tuple(value)
    return REQUESTS[verb](**values)


def encode_answer(answer: Answer) -> bytes:
    """Put an answer into bytes.

    Raises:
        ValueError: When a number is not finite, which JSON cannot say.
    """
    message = pb.Answer(data=_json(answer.data), content=answer.content)
    return bytes(message.SerializeToString())


def decode_answer(data: bytes) -> Answer:
    """Read an answer.

    Raises:
        FleetError: ``control-malformed``.
    """
    try:
        message = pb.Answer.FromString(data)
        return Answer(_object(message.data), bytes(message.content))
    except (DecodeError, ValueError) as error:
        raise _malformed(error) from error


def encode_event(event: Event) -> bytes:
    """Put an event into bytes."""
    message = pb.Event(
        seq=event.seq,
        at=event.at,
        actor=event.actor,
        verb=event.verb,
        subject=event.subject,
        detail=_json(event.detail),
    )
    return bytes(message.SerializeToString())


def decode_event(data: bytes) -> Event:
    """Read an event.

    Raises:
        FleetError: ``control-malformed``.
    """
    try:
        m = pb.Event.FromString(data)
        return Event(m.seq, m.at, m.actor, m.verb, m.subject, _object(m.detail))
    except (DecodeError, ValueError) as error:
        raise _malformed(error) from error


def encode_watch(after: int | None, limit_s: float) -> bytes:
    """Put the question for events into bytes."""
    message = pb.WatchRequest(limit_s=limit_s)
    if after is not None:
        message.after = after
    return bytes(message.SerializeToString())


def decode_watch(data: bytes) -> tuple[int | None, float]:
    """Read the question for events: the last row that is known, and a limit in seconds.

    Raises:
        InputError: ``bad-request``.
    """
    try:
        message = pb.WatchRequest.FromString(data)
    except DecodeError as error:
        raise _bad(str(error)) from error
    after = message.after if message.HasField("after") else None
    if not 0 <= message.limit_s < math.inf or (after or 0) > 2**62:
        raise _bad(f"no watch lasts {message.limit_s} s from row {after}")
    return after, message.limit_s


def _class_of(verb: str) -> Any:
    return getattr(pb, f"{verb}Request")


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(dict(content), allow_nan=False, separators=(",", ":"))


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def _bad(why: str) -> InputError:
    return InputError("bad-request", f"the request breaks a rule: {why[:2000]}", "")


def _malformed(error: Exception) -> FleetError:
    return FleetError(
        "control-malformed",
        f"the server's answer cannot be read: {error}",
        "Use the same version of Corefleet on both sides.",
    )
