"""Encoding and decoding one update beside raw bytes and Flower's object tree."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from fleet.adapt.state import CoreState
from fleet.federate.records import WIRE_FORMAT, UpdateHeader
from fleet.federate.wire import (
    Payload,
    Update,
    decode_state,
    decode_update_header,
    encode_update,
)
from server.flower import become_task, deflate, inflate
from server.messages import content_of, payload_of
from simulations.bench import measure, report

__all__ = ["run"]

REPEATS = 200
LAYERS = 4


def run(entries: int, runs: int) -> dict[str, Any]:
    """Time one encode and decode of an update of ``entries`` float32."""
    become_task()
    # As a device has it: one array a layer, packed when it is sent.
    each = {f"layer{n}.core": (size, 1) for n, size in enumerate(_shares(entries)) if size}
    delta = CoreState.of({name: np.zeros(shape, np.float32) for name, shape in each.items()})
    layout = delta.layout
    digest = "0" * 64
    header = UpdateHeader(
        format=WIRE_FORMAT,
        plan="0" * 16,
        device="person-01",
        base=digest,
        frame=digest,
        layout=layout.digest,
        examples=100,
        steps=10,
        loss=0.5,
    )
    raw = delta.flat()
    asked = Message(RecordDict(), dst_node_id=1, message_type="train", ttl=60.0, group_id="bench")

    def own() -> None:
        payload = encode_update(Update(header, delta))
        decode_update_header(payload.config)
        decode_state(payload, layout)

    def flower(payload: Payload) -> None:
        reply = Message(content_of(payload), reply_to=asked)
        payload_of(inflate(deflate(reply)).content)

    encoded = encode_update(Update(header, delta))
    sides = {
        "raw-bytes": _repeat(lambda: np.frombuffer(raw.tobytes(), np.float32).copy()),
        "update-record": _repeat(own),
        "flower-objects": _repeat(lambda: flower(encoded)),
    }
    work = {"round trips": REPEATS, "bytes each": entries * 4}
    record = report(measure(sides, runs), "raw-bytes", work)
    per = {name: side["median"] / REPEATS for name, side in record["sides"].items()}
    record["notes"] = [f"{name}: {seconds * 1e6:.1f} µs each" for name, seconds in per.items()]
    wire = deflate(Message(content_of(encoded), reply_to=asked)).wire
    record["notes"].append(
        f"on the wire: {wire.total} B in {wire.objects} objects, {raw.nbytes} B of them the array"
    )
    return record


def _shares(entries: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(entries), LAYERS)]


def _repeat(call: Any) -> Any:
    def side() -> None:
        for _ in range(REPEATS):
            call()

    return side
