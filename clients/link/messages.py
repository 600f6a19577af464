"""Records into bytes and back: protobuf, checked against every limit on both sides.

An array travels as its raw little-endian float32 bytes, that of a compressed update, whose config
names its encoding, as bytes; a scalar says its type, so that ``True`` does not come back as 1.
Nothing that arrives is trusted to be whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from clients.link import agent_pb2 as pb
from clients.link import records as r
from fleet.adapt.digest import little_endian
from fleet.errors import InputError, MismatchError
from fleet.federate.wire import BASE_BUNDLE, LARGEST_BUNDLE_BYTES, Payload, Scalar

__all__ = [
    "decode_about",
    "decode_answer",
    "decode_request",
    "encode_about",
    "encode_answer",
    "encode_request",
]

ITEM = np.dtype("<f4")
PACKED_ITEM = np.dtype(np.uint8)
T = TypeVar("T")


def encode_request(request: r.Request) -> bytes:
    """Put a request into bytes.

    Raises:
        InputError: ``link-too-large`` or ``link-unsayable`` for values that the link cannot carry.
    """

    def make() -> Any:
        # Checked here so that the caller hears of it, not the agent.
        _check(0 < request.limit_s < math.inf, f"a limit of {request.limit_s} s is none")
        _check_size(request.kind, r.LARGEST_KEY, "a kind")
        return pb.Request(
            format=r.LINK_FORMAT,
            kind=request.kind,
            limit_s=request.limit_s,
            payload=_payload_out(request.payload),
        )

    return _encoded(make)


def decode_request(data: bytes) -> r.Request:
    """Read a request on the agent's side.

    Raises:
        MismatchError: ``link-format`` with the side to upgrade, ``link-malformed``.
    """

    def read() -> r.Request:
        message = pb.Request.FromString(data)
        _check_format(message.format, "agent", "bridge")
        _check(0 < message.limit_s < math.inf, f"a limit of {message.limit_s} s is none")
        _check_size(message.kind, r.LARGEST_KEY, "a kind")
        return r.Request(message.kind, _payload_in(message.payload), message.limit_s)

    return _decoded(read, data)


def encode_answer(answer: r.Answer) -> bytes:
    """Put an answer into bytes; a reason to decline is cut to fit.

    Raises:
        InputError: ``link-too-large`` or ``link-unsayable`` for values that the link cannot carry.
    """

    def make() -> Any:
        message = pb.Response(format=r.LINK_FORMAT)
        if isinstance(answer, Payload):
            message.payload.CopyFrom(_payload_out(answer))
        elif isinstance(answer, r.Metrics):
            message.metrics.CopyFrom(_metrics_out(answer))
        elif isinstance(answer, r.Declined):
            message.declined.code = _sayable(answer.code)[: r.LARGEST_CODE]
            message.declined.detail = _sayable(answer.detail)[: r.LARGEST_DETAIL]
        else:
            raise TypeError(f"an answer is no {type(answer).__name__}")
        return message

    return _encoded(make)


def decode_answer(data: bytes) -> r.Answer:
    """Read an answer on the bridge's side.

    Raises:
        MismatchError: ``link-format`` with the side to upgrade, ``link-malformed``.
    """

    def read() -> r.Answer:
        message = pb.Response.FromString(data)
        _check_format(message.format, "bridge", "agent")
        found = message.WhichOneof("answer")
        if found == "payload":
            return _payload_in(message.payload)
        if found == "metrics":
            return _metrics_in(message.metrics)
        _check(found == "declined", "an answer holds nothing")
        code, detail = message.declined.code, message.declined.detail
        _check(bool(code), "a reason to decline has no code")
        return r.Declined(code[: r.LARGEST_CODE], detail[: r.LARGEST_DETAIL])

    return _decoded(read, data)


def encode_about(about: r.About) -> bytes:
    """Put who the agent is into bytes; texts are cut to fit."""
    message = pb.PingResponse(
        format=about.format,
        device=_sayable(about.device)[: r.LARGEST_KEY],
        pid=about.pid,
        version=_sayable(about.version)[: r.LARGEST_KEY],
        doing=_sayable(about.doing)[: r.LARGEST_DETAIL],
    )
    return bytes(message.SerializeToString())


def decode_about(data: bytes) -> r.About:
    """Read who the agent is, whatever format it speaks.

    Raises:
        MismatchError: ``link-malformed``.
    """

    def read() -> r.About:
        message = pb.PingResponse.FromString(data)
        _check(message.format > 0, "no format is named")
        return r.About(
            message.device[: r.LARGEST_KEY],
            message.pid,
            message.version[: r.LARGEST_KEY],
            message.doing[: r.LARGEST_DETAIL],
            message.format,
        )

    return _decoded(read, data)


def _payload_out(payload: Payload) -> Any:
    array = payload.array
    native = array.dtype.newbyteorder("=")
    item = _item_of(payload.config)
    _check(native == item, f"a packed array is {item}, not {array.dtype}")
    _check(array.ndim == 1, f"a packed array has one dimension, not {array.ndim}")
    # Before any copy of what could not be sent anyway.
    _check_bytes(array.nbytes)
    _check_count(payload.config, r.LARGEST_CONFIG, "a config")
    message = pb.Payload(array=little_endian(array).tobytes())
    for key, value in payload.config.items():
        _check_size(key, r.LARGEST_KEY, "a key")
        field, kept = _scalar_out(key, value)
        setattr(message.config[key], field, kept)
    return message


def _payload_in(message: Any) -> Payload:
    _check_count(message.config, r.LARGEST_CONFIG, "a config")
    config: dict[str, Scalar] = {}
    for key, scalar in message.config.items():
        _check_size(key, r.LARGEST_KEY, "a key")
        field = scalar.WhichOneof("value")
        _check(field is not None, f"{key!r} has no value")
        value: Scalar = getattr(scalar, field)
        if isinstance(value, (str, bytes)):
            _check_size(value, _largest(key), f"the value of {key!r}")
        config[key] = value
    item = _item_of(config)
    _check(len(message.array) % item.itemsize == 0, "the array is cut within a number")
    return Payload(np.frombuffer(message.array, item), config)


def _item_of(config: Mapping[str, Scalar]) -> np.dtype[Any]:
    return ITEM if config.get("encoding", "none") == "none" else PACKED_ITEM


def _scalar_out(key: str, value: Scalar) -> tuple[str, Scalar]:
    # A bool is an int to Python, so it comes first.
    if isinstance(value, bool):
        return "flag", value
    if isinstance(value, int):
        return "whole", value
    if isinstance(value, float):
        return "real", value
    if isinstance(value, (str, bytes)):
        _check_size(value, _largest(key), f"the value of {key!r}")
        return ("text" if isinstance(value, str) else "raw"), value
    raise TypeError(f"{key!r} is a {type(value).__name__}, no scalar")


def _largest(key: str) -> int:
    return LARGEST_BUNDLE_BYTES if key == BASE_BUNDLE else r.LARGEST_TEXT


def _metrics_out(metrics: r.Metrics) -> Any:
    _check_count(metrics.values, r.LARGEST_METRICS, "metrics")
    message = pb.Metrics()
    for key, value in metrics.values.items():
        _check_size(key, r.LARGEST_KEY, "a key")
        entry = message.values[key]
        if isinstance(value, list):
            _check_count(value, r.LARGEST_COUNTS, f"the counts of {key!r}")
            entry.counts.CopyFrom(pb.Counts(values=value))
        elif isinstance(value, float):
            entry.real = value
        else:
            entry.whole = value
    return message


def _metrics_in(message: Any) -> r.Metrics:
    _check_count(message.values, r.LARGEST_METRICS, "metrics")
    values: dict[str, int | float | list[int]] = {}
    for key, metric in message.values.items():
        _check_size(key, r.LARGEST_KEY, "a key")
        field = metric.WhichOneof("value")
        _check(field is not None, f"{key!r} has no value")
        if field == "counts":
            _check_count(metric.counts.values, r.LARGEST_COUNTS, f"the counts of {key!r}")
            values[key] = list(metric.counts.values)
        else:
            values[key] = getattr(metric, field)
    return r.Metrics(values)


def _encoded(make: Callable[[], Any]) -> bytes:
    """Serialise what ``make`` builds; say what the link cannot carry."""
    try:
        data = bytes(make().SerializeToString())
    except (TypeError, ValueError) as error:  # also integers past int64 and lone surrogates
        raise InputError("link-unsayable", f"the link cannot carry this: {error}") from error
    _check_bytes(len(data))
    return data


def _decoded(read: Callable[[], T], data: bytes) -> T:
    try:
        _check_bytes(len(data))
        return read()
    except MismatchError:
        raise
    except (DecodeError, InputError, ValueError) as error:
        raise MismatchError("link-malformed", f"a message cannot be read: {error}") from error


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _check_count(values: Mapping[str, Any] | list[int], largest: int, what: str) -> None:
    _check(len(values) <= largest, f"{what} has at most {largest} entries, not {len(values)}")


def _check_size(value: str | bytes, largest: int, what: str) -> None:
    size = len(value.encode() if isinstance(value, str) else value)
    _check(size <= largest, f"{what} takes at most {largest} bytes, not {size}")


def _check_bytes(size: int) -> None:
    if size > r.LARGEST_MESSAGE_BYTES:
        raise InputError(
            "link-too-large",
            f"a message has at most {r.LARGEST_MESSAGE_BYTES} bytes, not {size}",
            "Train fewer parameters: a method with cores, or a lower rank.",
        )


def _check_format(found: int, own: str, other: str) -> None:
    if found == r.LINK_FORMAT:
        return
    _check(found > 0, "no format is named")
    older = other if found < r.LINK_FORMAT else own
    raise MismatchError(
        "link-format",
        f"this {own} speaks link format {r.LINK_FORMAT}, the {other} sent {found}:"
        f" upgrade the {older}",
        f"Install the same version of corefleet for both; the {older} is behind.",
    )


def _sayable(text: str) -> str:
    # File names may hold lone surrogates, and a reason must arrive whatever it quotes.
    return text.encode(errors="replace").decode()
