from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from clients.agent.config import PRIVATE_KEY, DeviceConfig
from clients.agent.doctor.enrolled import check_enrolled
from clients.agent.doctor.finding import Result, Subject
from tests.clients.agent.doctor.authority import Authority, Serve


class Link:
    """What a SuperLink knows; nobody is activated by a question."""

    def __init__(self, known: bool) -> None:
        self.known, self.keys = known, list[bytes]()

    def get_node_id_by_public_key(self, key: bytes) -> int | None:
        self.keys.append(key)
        return 7 if self.known else None

    def activate_node(self, node: int, interval: float) -> bool:
        raise AssertionError("the question activated the node")


class SuperLink:
    """Answers as Flower does: its own check of a signature, its own activation."""

    def __init__(self, known: bool) -> None:
        self.link = Link(known)

    def __call__(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        from flwr.proto.fleet_pb2 import ActivateNodeRequest
        from flwr.supercore.error import FlowerError
        from flwr.supercore.error.catalog import API_ERROR_MAP
        from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
        from flwr.superlink.servicer.fleet.fleet_handlers import activate_node

        assert path == "/v1/fleet/activate-node"
        request = ActivateNodeRequest.FromString(body)
        own = {name.lower(): value for name, value in headers.items()}
        assert own["content-type"] == "application/protobuf"
        assert b64decode(own["flwr-public-key"]) == request.public_key
        assert verify_signature(
            bytes_to_public_key(request.public_key),
            own["flwr-timestamp"].encode(),
            b64decode(own["flwr-signature"]),
        )
        link: Any = self.link
        with pytest.raises(FlowerError) as raised:
            activate_node(request, link)
        spec = API_ERROR_MAP[raised.value.code]
        answer = raised.value.to_json(spec.public_message)
        return spec.http_status_code, json.dumps(answer).encode()


def at(subject: Subject, port: int) -> Subject:
    return replace(subject, config=DeviceConfig(name="a", server=f"127.0.0.1:{port}"))


@pytest.mark.parametrize(("known", "result"), [(True, Result.ok), (False, Result.fail)])
def test_whether_the_server_knows_the_key_is_asked_without_an_activation(
    subject: Subject, serve: Serve, authority: Authority, known: bool, result: Result
) -> None:
    pytest.importorskip("flwr")
    superlink = SuperLink(known)
    finding = check_enrolled(at(subject, serve(authority, post=superlink)))
    assert finding.result is result, finding
    assert len(superlink.link.keys) == 1


def test_a_key_that_is_not_known_is_a_failure_that_says_how_to_make_another(
    subject: Subject, serve: Serve, authority: Authority
) -> None:
    def refuse(path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        return 412, b'{"code": 2004, "detail": "Failed to activate SuperNode."}'

    finding = check_enrolled(at(subject, serve(authority, post=refuse)))
    assert finding.result is Result.fail
    assert "does not know this key, or has revoked it" in finding.detail
    assert "fleet device list --all" in finding.detail
    assert f"move {subject.state / PRIVATE_KEY}" in finding.fix
    assert f"fleet-device init --state {subject.state}" in finding.fix


@pytest.mark.parametrize(
    ("status", "answer", "result", "word"),
    [
        (401, b"{}", Result.fail, "signature"),
        (502, b"superlink-away\n", Result.skip, "502"),
        (200, b"[1]", Result.skip, "does not tell"),
        (412, b'{"code": 2999}', Result.skip, "2999"),
    ],
)
def test_another_answer_is_not_taken_for_a_revocation(
    subject: Subject,
    serve: Serve,
    authority: Authority,
    status: int,
    answer: bytes,
    result: Result,
    word: str,
) -> None:
    port = serve(authority, post=lambda path, headers, body: (status, answer))
    finding = check_enrolled(at(subject, port))
    assert (finding.result, word in finding.detail) == (result, True), finding


def test_what_another_check_finds_is_left_to_it(subject: Subject, serve: Serve) -> None:
    def unheard(path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        raise AssertionError("nothing is sent to a server that is not trusted")

    assert check_enrolled(subject).result is Result.skip
    assert check_enrolled(at(subject, serve(Authority(), post=unheard))).result is Result.skip
    assert check_enrolled(at(subject, 1)).result is Result.skip
    (subject.state / PRIVATE_KEY).write_text("no key")
    finding = check_enrolled(at(subject, 1))
    assert (finding.result, "cannot be read" in finding.detail) == (Result.skip, True)
    (subject.state / PRIVATE_KEY).unlink()
    assert check_enrolled(at(subject, 1)).result is Result.skip
