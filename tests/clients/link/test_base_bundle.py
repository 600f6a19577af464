"""A base that travels with a release: the largest passes, and one byte more is refused at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clients.link import agent_pb2 as pb
from clients.link.caller import ask
from clients.link.messages import decode_request, encode_request
from clients.link.records import (
    LARGEST_MESSAGE_BYTES,
    LARGEST_TEXT,
    LINK_FORMAT,
    Answer,
    Declined,
    Request,
)
from fleet.errors import InputError, MismatchError, StorageError
from fleet.federate.releases import base_with
from fleet.federate.wire import BASE_BUNDLE, LARGEST_BUNDLE_BYTES, Payload, with_base
from tests.clients.link.agent_process import PATIENCE_S, Serve

STATE = np.arange(2**18, dtype=np.float32)
"""A state beside it, as large as that of full weights may be."""
RELEASE = Payload(STATE, {"base": "0" * 64, "release": 3})


def junk(size: int) -> bytes:
    return np.random.default_rng(0).bytes(size)


def asking(payload: Payload) -> Request:
    return Request("query.release", payload, PATIENCE_S)


def test_the_largest_base_arrives_over_the_socket_as_it_was_sent(
    socket: Path, agent: Serve
) -> None:
    content = junk(LARGEST_BUNDLE_BYTES)
    came: list[Payload] = []

    def answer(request: Request) -> Answer:
        came.append(request.payload)
        return Payload(np.zeros(0, np.float32), {"release": 3})

    agent(answer)
    found = ask(socket, asking(with_base(RELEASE, content)))
    assert isinstance(found, Payload)
    [payload] = came
    assert payload.config == {**RELEASE.config, BASE_BUNDLE: content}
    assert payload.array.tobytes() == STATE.tobytes()


def test_the_largest_that_is_no_base_is_declined_with_its_code(socket: Path, agent: Serve) -> None:
    def answer(request: Request) -> Answer:
        with pytest.raises(StorageError) as why:
            base_with(request.payload)
        return Declined.because(why.value)

    agent(answer)
    found = ask(socket, asking(with_base(RELEASE, junk(LARGEST_BUNDLE_BYTES))))
    assert isinstance(found, Declined)
    assert found.code == "bundle-damaged"


def test_one_byte_more_is_refused_where_the_message_is_made() -> None:
    with pytest.raises(MismatchError, match=f"at most {LARGEST_BUNDLE_BYTES} bytes") as why:
        with_base(RELEASE, bytes(LARGEST_BUNDLE_BYTES + 1))
    assert why.value.code == "bundle-too-large"
    assert "fleet-device base add" in why.value.hint


def test_one_byte_more_is_refused_where_it_is_said_and_nothing_is_sent(
    socket: Path, agent: Serve
) -> None:
    came: list[Request] = []

    def answer(request: Request) -> Answer:
        came.append(request)
        return request.payload

    agent(answer)
    payload = Payload(STATE, {**RELEASE.config, BASE_BUNDLE: bytes(LARGEST_BUNDLE_BYTES + 1)})
    found = ask(socket, asking(payload))
    assert isinstance(found, Declined)
    assert (found.code, came) == ("link-unsayable", [])
    assert f"{BASE_BUNDLE!r} takes at most {LARGEST_BUNDLE_BYTES} bytes" in found.detail


def test_only_a_base_may_be_so_large() -> None:
    for key in ("base", "base_bundle2", "Base_bundle"):
        payload = Payload(RELEASE.array, {key: bytes(LARGEST_TEXT + 1)})
        with pytest.raises(InputError) as why:
            encode_request(asking(payload))
        assert why.value.code == "link-unsayable"


def test_one_byte_more_is_malformed_where_it_arrives() -> None:
    config = {BASE_BUNDLE: pb.Scalar(raw=bytes(LARGEST_BUNDLE_BYTES + 1))}
    sent = pb.Request(
        format=LINK_FORMAT, kind="query.release", limit_s=1.0, payload=pb.Payload(config=config)
    )
    with pytest.raises(MismatchError) as why:
        decode_request(sent.SerializeToString())
    assert why.value.code == "link-malformed"


def test_beside_the_largest_base_there_is_room_for_the_largest_state() -> None:
    room = (LARGEST_MESSAGE_BYTES - LARGEST_BUNDLE_BYTES - 4096) // 4
    payload = Payload(np.zeros(room, np.float32), RELEASE.config)
    sent = encode_request(asking(with_base(payload, bytes(LARGEST_BUNDLE_BYTES))))
    assert len(sent) <= LARGEST_MESSAGE_BYTES
    assert len(decode_request(sent).payload.array) == room
