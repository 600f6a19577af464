"""The scale: what messages weigh on Flower's wire, deflating one of each shape only.

Two messages of one signature weigh the same: it holds the length, or what determines the length,
of every field that Flower writes. So the first of a signature is deflated and weighed, and the
thousands after it are looked up. A message whose weight depends on more than lengths (equal
objects travel once, so two equal arrays weigh less than two others) has no signature and is always
deflated.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from server import flower

__all__ = ["Scale", "content_signature", "signature"]

# A run has a few signatures for each kind of message: ids of unlike magnitude, names of unlike
# length. Devices that answer anything must not fill the memory.
MAX_SIGNATURES = 10_000
LARGEST_SINT = 2**63 - 1


class Scale:
    """Weighs messages as :func:`server.flower.wire_bytes` does, and remembers."""

    def __init__(self) -> None:
        self._known: dict[Hashable, int] = {}

    def weigh(self, message: Message, content: Hashable = None) -> int:
        """Return the bytes of a message on the wire.

        Args:
            message: Any message; its id does not matter, that of what it replies to does.
            content: The :func:`content_signature` of its records, where it is known already.
        """
        key = signature(message, content)
        if key is None:
            return flower.wire_bytes(message).total
        found = self._known.get(key)
        if found is None:
            found = flower.wire_bytes(message).total
            if len(self._known) >= MAX_SIGNATURES:
                self._known.clear()
            self._known[key] = found
        return found


def signature(message: Message, content: Hashable = None) -> Hashable:
    """Return what determines a message's weight, or None where lengths do not."""
    data = message.metadata
    if message.has_error():
        error = message.error
        records: Hashable = (error.code, _utf8(error.reason or ""))
    else:
        records = content_signature(message.content) if content is None else content
    if records is None:
        return None
    numbers = (data.run_id, data.src_node_id, data.dst_node_id, data.src_task_id, data.dst_task_id)
    return (
        tuple(map(_plain_varint, numbers)),
        _utf8(data.reply_to_message_id),
        _utf8(data.group_id),
        _utf8(data.message_type),
        # Doubles take eight bytes, and none where they are zero.
        data.ttl == 0,
        data.created_at == 0,
        records,
    )


def content_signature(content: RecordDict) -> Hashable:
    """Return what determines the weight of records, or None where lengths do not.

    There is one for at most one record of each kind, and at most one array of one chunk: among
    these no two objects can be equal.
    """
    parts: list[Hashable] = []
    kinds: set[type] = set()
    for name, record in content.items():
        kind = type(record)
        part = _array(record) if isinstance(record, ArrayRecord) else _scalars(record)
        if part is None or kind in kinds:
            return None
        kinds.add(kind)
        parts.append((name, kind, part))
    return tuple(parts)


def _array(record: ArrayRecord) -> Hashable:
    parts: list[Hashable] = []
    for name, array in record.items():
        if len(array.data) > flower.ARRAY_CHUNK_BYTES:
            return None
        parts.append((name, array.dtype, array.shape, array.stype, len(array.data)))
    return tuple(parts) if len(parts) < 2 else None


def _scalars(record: ConfigRecord | MetricRecord) -> Hashable:
    parts = [(name, _value(value)) for name, value in record.items()]
    return None if any(part is None for _, part in parts) else tuple(parts)


def _value(value: object) -> Hashable:
    """Return type and length of a value; None for a list of unlike or unknown things."""
    if isinstance(value, list):
        kinds = {type(each) for each in value}
        if len(kinds) > 1:
            return None
        return (len(value), tuple(kinds), _lengths(value))
    length = _length(value)
    return None if length is None else (type(value), length)


def _lengths(values: Iterable[object]) -> Hashable:
    """Return what determines the length of a list: packed numbers only add up, texts do not."""
    lengths = [_length(each) for each in values]
    if any(isinstance(each, tuple) for each in lengths):
        return tuple(lengths)
    return sum(each for each in lengths if isinstance(each, int))


def _length(value: object) -> Hashable:
    if isinstance(value, (bool, float)):
        return 0
    if isinstance(value, int):
        # Integers beyond 63 bits travel in another field.
        return _zigzag_varint(value) if value <= LARGEST_SINT else (0, "uint64")
    if isinstance(value, str):
        return ("text", _utf8(value))
    if isinstance(value, bytes):
        return ("bytes", len(value))
    return None


def _zigzag_varint(value: int) -> int:
    """Return the bytes of a ``sint64``: seven bits each, the sign is the lowest bit."""
    return (value if value >= 0 else ~value).bit_length() // 7 + 1


def _plain_varint(value: int | None) -> int | None:
    """Return the bytes of a ``uint64`` or ``int64`` field, which is left out where it is zero."""
    if value is None or value == 0:
        return value
    return 10 if value < 0 else (value.bit_length() + 6) // 7


def _utf8(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
