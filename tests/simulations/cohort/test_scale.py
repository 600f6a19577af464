from __future__ import annotations

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from server import flower
from simulations.cohort import scale
from simulations.cohort.scale import Scale, content_signature

flower.become_task()

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
SINT = st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300)
SCALAR = st.booleans() | SINT | st.integers(2**63, 2**64 - 1) | st.floats() | TEXT
VALUE = SCALAR | st.binary(max_size=300) | st.lists(SINT, max_size=40)
LISTS = st.lists(st.floats(), max_size=9) | st.lists(TEXT, max_size=4)
NUMBER = SINT | st.floats() | st.lists(SINT, max_size=150) | st.lists(st.floats(), max_size=9)
KEY = st.text("abcdefgh-ü", min_size=1, max_size=12)
NODE = st.integers(1, 2**64 - 1) | st.integers(1, 300)
# One scale for all examples: what it remembers of one must hold for the next.
SCALE = Scale()


@st.composite
def contents(draw: st.DrawFn) -> RecordDict:
    content = RecordDict()
    if draw(st.booleans()):
        content["config"] = ConfigRecord(draw(st.dictionaries(KEY, VALUE | LISTS, max_size=9)))
    if draw(st.booleans()):
        content["metrics"] = MetricRecord(draw(st.dictionaries(KEY, NUMBER, max_size=4)))
    for name in draw(st.lists(st.sampled_from(["packed", "b"]), max_size=2, unique=True)):
        size = draw(st.integers(0, 40))
        array = np.full(size, draw(st.sampled_from([0.0, 1.0])), np.float32)
        content.setdefault("arrays", ArrayRecord())
        content.array_records["arrays"][name] = Array(array)
    return content


@st.composite
def messages(draw: st.DrawFn) -> Message:
    kind = draw(st.sampled_from(["train", "evaluate", "query.status"]))
    asked = Message(draw(contents()), draw(NODE), kind, ttl=draw(st.floats(1, 1e6)), group_id="g")
    asked.metadata.group_id = draw(TEXT)
    if draw(st.booleans()):
        return asked
    flower.stamp(asked, draw(st.sampled_from(["a" * 64, "b" * 64, ""])))
    if draw(st.booleans()):
        return Message(Error(draw(st.integers(0, 300)), draw(st.none() | TEXT)), reply_to=asked)
    return Message(draw(contents()), reply_to=asked)


@given(messages())
@settings(max_examples=300, deadline=None)
def test_a_message_weighs_what_flower_deflates_it_to(message: Message) -> None:
    assert SCALE.weigh(message) == flower.wire_bytes(message).total


@pytest.mark.parametrize("bits", range(0, 64, 7))
def test_integers_are_told_apart_where_their_varints_grow(bits: int) -> None:
    for value in (2**bits - 2, 2**bits - 1, 2**bits, -(2**bits), -(2**bits) - 1):
        if -(2**63) <= value < 2**64:
            content = RecordDict({"config": ConfigRecord({"value": value})})
            sent = Message(content, 2**bits, "train", ttl=1, group_id="1")
            assert SCALE.weigh(sent) == flower.wire_bytes(sent).total


def test_a_signature_is_deflated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weighed: list[Message] = []
    honest = flower.wire_bytes

    def count(message: Message) -> flower.WireBytes:
        weighed.append(message)
        return honest(message)

    monkeypatch.setattr(scale.flower, "wire_bytes", count)
    balance = Scale()
    for index in range(20):
        content = RecordDict({"config": ConfigRecord({"device": f"device-{index:05d}"})})
        balance.weigh(Message(content, 2**60 + index, "train", ttl=1, group_id="1"))
    assert len(weighed) == 1


def test_equal_arrays_travel_once_so_two_arrays_have_no_signature() -> None:
    one = RecordDict({"arrays": ArrayRecord([np.zeros(3, np.float32)])})
    two = RecordDict({"arrays": ArrayRecord([np.zeros(3, np.float32), np.ones(3, np.float32)])})
    assert content_signature(one) is not None
    assert content_signature(two) is None
    twice = {"a": ConfigRecord({"x": 1}), "b": ConfigRecord({"x": 1})}
    assert content_signature(RecordDict(twice)) is None


def test_an_array_of_several_chunks_has_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale.flower, "ARRAY_CHUNK_BYTES", 100)
    content = RecordDict({"arrays": ArrayRecord([np.zeros(30, np.float32)])})
    assert content_signature(content) is None


def test_few_signatures_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "MAX_SIGNATURES", 3)
    balance = Scale()
    for size in range(20):
        content = RecordDict({"config": ConfigRecord({"text": "x" * size})})
        balance.weigh(Message(content, 9, "train", ttl=1, group_id="1"))
    assert len(balance._known) <= 3
