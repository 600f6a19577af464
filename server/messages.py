"""Between payloads and Flower's records: one array and one config, checked on the way in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from fleet.errors import MismatchError
from fleet.federate.npy import from_npy, to_npy
from fleet.federate.wire import Payload
from server.flower import wire_bytes

__all__ = ["Traffic", "array_of", "confusion_of", "content_of", "payload_of", "weight_on_wire"]

# One device cannot claim to have tested more windows than this.
LARGEST_TESTED = 1_000_000
# How Flower names an array that numpy wrote.
NUMPY = "numpy.ndarray"


@dataclass
class Traffic:
    """Bytes of one round's train messages, both ways.

    Args:
        messages_down: Plans sent.
        bytes_down: Their packed arrays.
        wire_bytes_down: All their objects and framing.
        messages_up: Answers received.
        bytes_up: Their packed arrays.
        wire_bytes_up: All their objects and framing.
    """

    messages_down: int = 0
    bytes_down: int = 0
    wire_bytes_down: int = 0
    messages_up: int = 0
    bytes_up: int = 0
    wire_bytes_up: int = 0


def content_of(payload: Payload) -> RecordDict:
    """Put a payload into Flower's records: one array, one config."""
    content = RecordDict({"config": ConfigRecord(dict(payload.config))})
    if payload.array.size:
        content["arrays"] = ArrayRecord({"packed": array_of(payload.array)})
    return content


def array_of(flat: NDArray[np.float32]) -> Array:
    """Put a packed array into Flower's, as ``Array(flat)`` does."""
    return Array(str(flat.dtype), flat.shape, NUMPY, to_npy(flat))


def payload_of(content: RecordDict) -> Payload:
    """Take a payload out of Flower's records.

    Raises:
        MismatchError: ``malformed`` when there is more or less than one array and one config.
    """
    arrays = content.array_records
    config = content.config_records.get("config")
    if config is None or set(content) - {"arrays", "config"}:
        raise MismatchError(
            "malformed",
            f"a message has one config and at most one packed array, not {sorted(content)[:5]}",
        )
    flat: NDArray[np.float32] = np.zeros(0, np.float32)
    if "arrays" in arrays:
        if set(arrays["arrays"]) != {"packed"}:
            raise MismatchError("malformed", f"unexpected arrays {sorted(arrays['arrays'])[:5]}")
        try:
            packed = arrays["arrays"]["packed"]
            quickly = from_npy(packed.data) if packed.stype == NUMPY else None
            flat = packed.numpy() if quickly is None else quickly
        except Exception as error:  # NumPy raises anything for bytes that a device made up
            raise MismatchError("malformed", f"the packed array cannot be read: {error}") from error
        if not isinstance(flat, np.ndarray):  # a zip archive of arrays, say
            raise MismatchError("malformed", f"the packed array is a {type(flat).__name__}")
    scalars = {k: v for k, v in config.items() if isinstance(v, (str, int, float, bytes, bool))}
    if len(scalars) < len(config):
        lists = sorted(set(config) - set(scalars))[:5]
        raise MismatchError("malformed", f"a config holds scalars; {lists} are lists")
    return Payload(flat, scalars)


def confusion_of(content: RecordDict, wanted: int) -> NDArray[np.int64] | None:
    """Return the confusion counts of an evaluation, or None when they are not whole."""
    metrics = content.metric_records.get("metrics")
    flat = metrics.get("confusion") if metrics is not None else None
    if not isinstance(flat, list):
        return None
    classes = wanted or round(len(flat) ** 0.5)
    counts = np.asarray(flat)
    if classes * classes != len(flat) or counts.dtype.kind != "i" or (counts < 0).any():
        return None
    if sum(flat) > LARGEST_TESTED:
        return None
    return counts.reshape(classes, classes).astype(np.int64)


def weight_on_wire(message: Message) -> int:
    """Return the bytes of a message on the wire, counted by deflating it as Flower does."""
    return wire_bytes(message).total
