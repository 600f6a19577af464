from __future__ import annotations

import math
import struct
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.link import agent_pb2 as pb
from clients.link.messages import (
    decode_about,
    decode_answer,
    decode_request,
    encode_about,
    encode_answer,
    encode_request,
)
from clients.link.records import (
    LARGEST_CODE,
    LARGEST_CONFIG,
    LARGEST_COUNTS,
    LARGEST_DETAIL,
    LARGEST_KEY,
    LARGEST_MESSAGE_BYTES,
    LARGEST_METRICS,
    LARGEST_TEXT,
    LINK_FORMAT,
    About,
    Declined,
    Metrics,
    Request,
)
from fleet.errors import FleetError, InputError, MismatchError, RoundError
from fleet.federate.wire import Payload, Scalar

EMPTY = np.zeros(0, np.float32)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
wholes = st.integers(-(2**63), 2**63 - 1)
scalars = st.one_of(texts, wholes, st.floats(), st.binary(max_size=40), st.booleans())
configs = st.dictionaries(texts.filter(lambda t: len(t.encode()) <= LARGEST_KEY), scalars)
metrics = st.dictionaries(texts, st.one_of(wholes, st.floats(), st.lists(wholes)), max_size=8)


def alike(one: Any, other: Any) -> bool:
    """Equal in type and to the bit: True is no 1, 0.0 is no -0.0, and NaN is NaN."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isnan(one) == math.isnan(other) and (
            math.isnan(one) or struct.pack("<d", one) == struct.pack("<d", other)
        )
    return type(one) is type(other) and one == other


@given(configs, st.binary(max_size=200))
def test_a_payload_comes_back_with_the_same_types_and_bits(
    config: dict[str, Scalar], data: bytes
) -> None:
    array = np.frombuffer(data[: len(data) // 4 * 4], "<f4")
    request = decode_request(encode_request(Request("train", Payload(array, config), 7.5)))
    answer = decode_answer(encode_answer(Payload(array, config)))
    assert (request.kind, request.limit_s) == ("train", 7.5)
    assert isinstance(answer, Payload)
    for payload in (request.payload, answer):
        assert payload.array.dtype == np.float32
        assert payload.array.tobytes() == array.tobytes()
        assert set(payload.config) == set(config)
        assert all(alike(payload.config[key], value) for key, value in config.items())


@given(metrics)
def test_metrics_come_back_with_the_same_types(values: dict[str, Any]) -> None:
    answer = decode_answer(encode_answer(Metrics(values)))
    assert isinstance(answer, Metrics)
    assert set(answer.values) == set(values)
    assert all(alike(answer.values[key], value) for key, value in values.items())


@given(st.binary(max_size=300))
def test_whatever_bytes_arrive_are_read_or_refused_with_a_reason(data: bytes) -> None:
    for decode in (decode_request, decode_answer, decode_about):
        with suppress(MismatchError):
            decode(data)


def test_an_array_in_another_byte_order_travels_as_little_endian() -> None:
    array = np.array([1.5, -2.0], ">f4")
    message = pb.Response.FromString(encode_answer(Payload(array.astype(np.float32), {})))
    assert message.payload.array == struct.pack("<2f", 1.5, -2.0)
    assert pb.Response.FromString(encode_answer(Payload(array, {}))) == message


def test_a_reason_to_decline_comes_back_as_its_error_said() -> None:
    reason = Declined.because(RoundError("too-hot", "the device has 91 °C", "Wait."))
    assert decode_answer(encode_answer(reason)) == Declined("too-hot", "the device has 91 °C")


def test_a_reason_always_arrives_however_long_or_strange_it_is() -> None:
    found = decode_answer(encode_answer(Declined("c" * 100, "\udcff" + "d" * 5000)))
    assert isinstance(found, Declined)
    assert (len(found.code), len(found.detail)) == (LARGEST_CODE, LARGEST_DETAIL)
    assert found.detail.startswith("?d")


def test_who_the_agent_is_comes_back_also_from_another_format() -> None:
    about = About("device-1", 42, "9.9.9", "training", LINK_FORMAT + 1)
    assert decode_about(encode_about(about)) == about


@pytest.mark.parametrize(
    ("payload", "code", "says"),
    [
        (Payload(np.zeros(2), {}), "link-unsayable", "float32, not float64"),  # type: ignore[arg-type]
        (Payload(np.zeros((2, 2), np.float32), {}), "link-unsayable", "one dimension, not 2"),
        (
            Payload(np.zeros(LARGEST_MESSAGE_BYTES // 4 + 1, np.float32), {}),
            "link-too-large",
            f"at most {LARGEST_MESSAGE_BYTES} bytes, not {LARGEST_MESSAGE_BYTES + 4}",
        ),
        (Payload(np.zeros(LARGEST_MESSAGE_BYTES // 4, np.float32), {}), "link-too-large", "bytes"),
        (Payload(EMPTY, {"n": 2**63}), "link-unsayable", ""),
        (Payload(EMPTY, {"n": [1]}), "link-unsayable", "'n' is a list, no scalar"),  # type: ignore[dict-item]
        (Payload(EMPTY, {"n": "\ud800"}), "link-unsayable", ""),
        (Payload(EMPTY, {"n": "ä" * (LARGEST_TEXT // 2 + 1)}), "link-unsayable", f"{LARGEST_TEXT}"),
        (Payload(EMPTY, {"n": bytes(LARGEST_TEXT + 1)}), "link-unsayable", f"{LARGEST_TEXT}"),
        (Payload(EMPTY, {"k" * (LARGEST_KEY + 1): 1}), "link-unsayable", f"{LARGEST_KEY}"),
        (
            Payload(EMPTY, {str(i): i for i in range(LARGEST_CONFIG + 1)}),
            "link-unsayable",
            f"at most {LARGEST_CONFIG} entries, not {LARGEST_CONFIG + 1}",
        ),
    ],
)
def test_what_the_link_cannot_carry_is_refused_where_it_is_said(
    payload: Payload, code: str, says: str
) -> None:
    for say in (
        lambda: encode_request(Request("train", payload, 1.0)),
        lambda: encode_answer(payload),
    ):
        with pytest.raises(InputError) as caught:
            say()
        assert caught.value.code == code
        assert says in caught.value.message


@pytest.mark.parametrize(
    "values",
    [
        {str(i): i for i in range(LARGEST_METRICS + 1)},
        {"confusion": [0] * (LARGEST_COUNTS + 1)},
        {"k" * (LARGEST_KEY + 1): 1},
        {"n": "text"},
        {"n": [2**63]},
    ],
)
def test_metrics_beyond_a_limit_are_refused_where_they_are_said(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the link cannot carry this"):
        encode_answer(Metrics(values))


@pytest.mark.parametrize("limit_s", [0.0, -1.0, math.inf, math.nan])
def test_a_request_has_a_limit(limit_s: float) -> None:
    with pytest.raises(InputError, match="a limit of"):
        encode_request(Request("train", Payload(EMPTY, {}), limit_s))


def request_with(**fields: Any) -> bytes:
    sound = {"format": LINK_FORMAT, "kind": "train", "limit_s": 1.0}
    return bytes(pb.Request(**(sound | fields)).SerializeToString())


def response_with(**fields: Any) -> bytes:
    return bytes(pb.Response(**({"format": LINK_FORMAT} | fields)).SerializeToString())


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff",
        request_with(format=0),
        request_with(limit_s=0.0),
        request_with(limit_s=math.nan),
        request_with(kind="k" * (LARGEST_KEY + 1)),
        request_with(payload=pb.Payload(array=b"abc")),
        request_with(payload=pb.Payload(config={"a": pb.Scalar()})),
        request_with(payload=pb.Payload(config={"a": pb.Scalar(text="t" * (LARGEST_TEXT + 1))})),
        request_with(payload=pb.Payload(config={"k" * (LARGEST_KEY + 1): pb.Scalar(whole=1)})),
        request_with(
            payload=pb.Payload(
                config={str(i): pb.Scalar(whole=i) for i in range(LARGEST_CONFIG + 1)}
            )
        ),
        bytes(LARGEST_MESSAGE_BYTES + 1),
    ],
    ids=range(11),
)
def test_a_request_that_breaks_a_rule_is_malformed(data: bytes) -> None:
    with pytest.raises(MismatchError) as caught:
        decode_request(data)
    assert caught.value.code == "link-malformed"


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff",
        response_with(),
        response_with(declined=pb.Declined(detail="no code")),
        response_with(payload=pb.Payload(array=b"abc")),
        response_with(metrics=pb.Metrics(values={"a": pb.Metric()})),
        response_with(
            metrics=pb.Metrics(
                values={"a": pb.Metric(counts=pb.Counts(values=[0] * (LARGEST_COUNTS + 1)))}
            )
        ),
        response_with(
            metrics=pb.Metrics(values={str(i): pb.Metric() for i in range(LARGEST_METRICS + 1)})
        ),
    ],
    ids=range(7),
)
def test_an_answer_that_breaks_a_rule_is_malformed(data: bytes) -> None:
    with pytest.raises(MismatchError) as caught:
        decode_answer(data)
    assert caught.value.code == "link-malformed"


@pytest.mark.parametrize(
    ("found", "behind_for_agent", "behind_for_bridge"),
    [(LINK_FORMAT + 1, "agent", "bridge")],
)
def test_a_newer_format_tells_which_side_to_upgrade(
    found: int, behind_for_agent: str, behind_for_bridge: str
) -> None:
    with pytest.raises(MismatchError, match=f"upgrade the {behind_for_agent}") as by_agent:
        decode_request(request_with(format=found))
    with pytest.raises(MismatchError, match=f"upgrade the {behind_for_bridge}") as by_bridge:
        decode_answer(response_with(format=found))
    assert {by_agent.value.code, by_bridge.value.code} == {"link-format"}


def test_an_older_format_tells_that_the_other_side_is_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request, answer = request_with(), response_with()
    monkeypatch.setattr("clients.link.records.LINK_FORMAT", LINK_FORMAT + 1)
    with pytest.raises(FleetError, match="upgrade the bridge"):
        decode_request(request)
    with pytest.raises(FleetError, match="upgrade the agent"):
        decode_answer(answer)
