from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import get_args, get_origin

import pytest
from google.protobuf.descriptor_pb2 import FieldDescriptorProto
from hypothesis import given
from hypothesis import strategies as st

import server.control
from fleet.errors import FleetError, InputError
from server.control import control_pb2 as pb
from server.control import requests as r
from server.control.messages import (
    decode_answer,
    decode_event,
    decode_request,
    decode_watch,
    encode_answer,
    encode_event,
    encode_request,
    encode_watch,
)
from server.control.seam import Answer, Event
from server.control.table import VERBS
from server.control.transport import SERVICE

PROTO = (Path(server.control.__path__[0]) / "control.proto").read_text(encoding="utf-8")
MUST = {
    "key": "k",
    "device": "ada",
    "public_key": "line",
    "name": "copy",
    "policy": "{}",
    "operator": "anna",
    "content": b"base",
    "base": "ab" * 32,
}
MUST_NUMBER = {"release": 1, "round": 1, "first": 0, "second": 1}


def smallest(verb: str) -> r.Request:
    """A request with what it must have alone."""
    kind = r.REQUESTS[verb]
    fields = [name for name, field in kind.model_fields.items() if field.is_required()]
    return kind.model_validate({name: {**MUST, **MUST_NUMBER}[name] for name in fields})


def test_the_generated_module_is_that_of_the_proto() -> None:
    text = re.sub(r"//.*", "", PROTO)
    kinds = {number: name for name, number in FieldDescriptorProto.Type.items()}
    field = re.compile(r"(repeated |optional )?(\w+) (\w+) = (\d+);")
    for block in re.split(r"^message ", text, flags=re.M)[1:]:
        name = block.split()[0]
        found = {
            (kinds[f.type].removeprefix("TYPE_").lower(), f.name, f.number)
            for f in getattr(pb, name).DESCRIPTOR.fields
        }
        written = {(kind, own, int(number)) for _, kind, own, number in field.findall(block)}
        assert found == written, f"{name}: run `make proto` after a change of control.proto"


def test_the_methods_are_the_verbs_and_the_watch() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert service.full_name == SERVICE
    calls = {m.name: (m.input_type.name, m.output_type.name) for m in service.methods}
    assert calls.pop("Watch") == ("WatchRequest", "Event")
    assert calls == {name: (f"{name}Request", "Answer") for name in VERBS}
    assert set(VERBS) == set(r.REQUESTS)


@pytest.mark.parametrize("verb", sorted(r.REQUESTS))
def test_every_message_has_the_fields_of_its_record(verb: str) -> None:
    kinds = {str: "string", bytes: "bytes", bool: "bool", int: "uint64"}
    body = PROTO.split(f"message {verb}Request {{", 1)[1].split("}", 1)[0]
    written = {
        name: words.split()
        for words, name in re.findall(r"([\w ]+) (\w+) = \d+;", re.sub(r"//.*", "", body))
    }
    fields = r.REQUESTS[verb].model_fields
    assert list(written) == list(fields)
    for name, field in fields.items():
        kind, *words = reversed(written[name])
        if get_origin(field.annotation) is tuple:
            assert (kind, words) == ("string", ["repeated"])
            continue
        plain = field.annotation if isinstance(field.annotation, type) else int
        assert kind == kinds[plain]
        # What is left out must be told from what the wire would fill in.
        unlike = not field.is_required() and field.default not in (0, "", False)
        assert words == (["optional"] if unlike else [])
        if plain is int and not isinstance(field.annotation, type):
            assert set(get_args(field.annotation)) == {int, type(None)}


@pytest.mark.parametrize("verb", sorted(r.REQUESTS))
def test_the_smallest_request_of_every_verb_comes_back(verb: str) -> None:
    request = smallest(verb)
    assert decode_request(verb, encode_request(request)) == request


def test_every_change_must_have_an_idempotency_key() -> None:
    changing = [name for name, kind in r.REQUESTS.items() if kind.changes]
    assert "DeviceEnroll" in changing
    for name in changing:
        assert r.REQUESTS[name].model_fields["key"].is_required()
        with pytest.raises(FleetError, match="key"):
            decode_request(name, b"")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NUMBERS = st.none() | st.integers(0, 2**31 - 1)


@given(release=NUMBERS, device=TEXT, tag=TEXT, why=TEXT, dry_run=st.booleans())
def test_a_request_comes_back_as_it_went(
    release: int | None, device: str, tag: str, why: str, dry_run: bool
) -> None:
    asked = r.ReleasePin(key="k", release=release, device=device, tag=tag, why=why, dry_run=dry_run)
    assert decode_request("ReleasePin", encode_request(asked)) == asked


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(data=st.dictionaries(TEXT, JSON, max_size=4), content=st.binary(max_size=100))
def test_an_answer_comes_back_as_it_went(data: dict[str, object], content: bytes) -> None:
    assert decode_answer(encode_answer(Answer(data, content))) == Answer(data, content)


@given(seq=st.integers(0, 2**62), verb=TEXT, detail=st.dictionaries(TEXT, JSON, max_size=3))
def test_an_event_comes_back_as_it_went(seq: int, verb: str, detail: dict[str, object]) -> None:
    event = Event(seq, "2026-01-01T00:00:00Z", "anna", verb, "round 1", detail)
    assert decode_event(encode_event(event)) == event


@given(after=st.none() | st.integers(0, 2**62), limit_s=st.floats(0, 1e6))
def test_a_watch_comes_back_as_it_went(after: int | None, limit_s: float) -> None:
    assert decode_watch(encode_watch(after, limit_s)) == (after, limit_s)


@given(data=st.binary(max_size=60), verb=st.sampled_from(sorted(r.REQUESTS)))
def test_noise_is_refused_or_is_a_request(data: bytes, verb: str) -> None:
    with suppress(InputError):
        assert isinstance(decode_request(verb, data), r.REQUESTS[verb])


@pytest.mark.parametrize("data", [b"\xff", encode_watch(None, float("nan")), encode_watch(0, -1)])
def test_a_watch_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(FleetError) as refused:
        decode_watch(data)
    assert refused.value.code == "bad-request"


@pytest.mark.parametrize("data", ["", "[]", "nonsense"])
def test_an_answer_that_is_no_object_is_told(data: str) -> None:
    with pytest.raises(FleetError) as told:
        decode_answer(bytes(pb.Answer(data=data).SerializeToString()))
    assert told.value.code == "control-malformed"
