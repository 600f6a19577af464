from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from server.service.config import Limits
from server.service.folder import ServerFolder
from server.service.front.listen import tls_of
from server.service.front.rules import LARGEST_ANNOUNCEMENT
from server.service.front.upstream import Upstream
from tests.server.service.fronting import (
    BIG,
    Fronted,
    fronted,
    made_folder,
    read_answer,
    request_of,
)


@pytest.fixture(scope="module")
def front(server_folder: ServerFolder) -> Iterator[Fronted]:
    """A front whose limits no test here reaches."""
    with fronted(server_folder, requests_per_s=1e6, burst=10**6, body_bytes=2**16) as found:
        yield found


def test_health_and_the_fleet_api_are_forwarded(front: Fronted) -> None:
    caller = front.call()
    assert front.ask(request_of("GET", "/health"), caller).status == 200
    answer = front.ask(request_of("POST", "/v1/fleet/push-object", b"abc"), caller)
    assert (answer.status, json.loads(answer.body)["bytes"]) == (200, 3)


def test_the_signature_of_a_device_passes_unchanged_and_what_is_ours_to_say_does_not(
    front: Fronted,
) -> None:
    signed = ["Flwr-Public-Key: k+/=", "flwr-timestamp: 2026", "flwr-signature: s"]
    foreign = [
        *("Connection: keep-alive, flwr-no", "Keep-Alive: 5", "TE: trailers", "Cookie: c"),
        *("X-Forwarded-For: 9.9.9.9", "Forwarded: for=9", "X-Real-Ip: 9", "Authorization: b"),
        *("Proxy-Authorization: b", "Content-Type: application/protobuf"),
    ]
    body = front.post("/v1/fleet/push-messages", b"x", *signed, *foreign).body
    headers = json.loads(body)["headers"]
    assert headers.pop("host").startswith("127.0.0.1:")
    assert headers == {
        "flwr-public-key": "k+/=",
        "flwr-timestamp": "2026",
        "flwr-signature": "s",
        "content-type": "application/protobuf",
        "content-length": "1",
        "x-forwarded-for": "127.0.0.1",
    }


def test_of_the_answers_headers_only_those_a_device_reads_come_back(front: Fronted) -> None:
    headers = front.post("/v1/fleet/push-messages").headers
    assert set(headers) == {
        "content-type",
        "content-length",
        "flwr-version-incompatibility-message",
    }


def test_a_large_answer_arrives_whole(front: Fronted) -> None:
    assert front.post("/v1/fleet/pull-object").body == b"x" * BIG


def test_a_redirect_is_not_followed_and_leads_nowhere(front: Fronted) -> None:
    answer = front.post("/v1/fleet/pull-messages")
    assert (answer.status, "location" in answer.headers) == (307, False)


CLOSED = [
    "/v1/control/list-nodes",
    "/v1/control/register-node",
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
    "/v1/fleet/register-node",
    "/v1/fleet/unregister-node",
    "/v1/fleet",
    "/v1/fleet/",
    "/v1/fleets/pull-messages",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/pull-messages?x=/v1/control",
    "/v1/fleet/pull-messages#x",
    "/v1/fleet/pull-messages;x",
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet/..%2fcontrol%2flist-nodes",
    "/v1/fleet/%2e%2e%2fcontrol",
    "/v1%2ffleet/pull-messages",
    "/v1/fleet//control/list-nodes",
    "//v1/control/list-nodes",
    "//v1/fleet/pull-messages",
    "/./v1/fleet/pull-messages",
    "/v1/fleet/.",
    "/v1/fleet/Pull-Messages",
    "/V1/fleet/pull-messages",
    "\\v1\\control\\list-nodes",
    "/health/",
    "/health/../v1/control/list-nodes",
    "/docs",
    "/openapi.json",
    "/redoc",
    "/",
    "*",
    "https://front/v1/fleet/pull-messages",
    "http://127.0.0.1/v1/control/list-nodes",
    "front:443",
    "/v1/fleet/" + "a" * 600,
]


@pytest.mark.parametrize("target", CLOSED)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_every_other_target_is_refused_and_reaches_nothing(
    front: Fronted, method: str, target: str
) -> None:
    before = len(front.behind.seen)
    assert front.ask(request_of(method, target)).status == 404
    assert len(front.behind.seen) == before


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("CONNECT", "127.0.0.1:9393", 404),
        ("CONNECT", "/v1/fleet/pull-messages", 405),
        ("GET", "/v1/fleet/pull-messages", 405),
        ("PUT", "/v1/fleet/pull-messages", 405),
        ("OPTIONS", "/v1/fleet/pull-messages", 405),
        ("post", "/v1/fleet/pull-messages", 405),
        ("POST", "/health", 405),
        ("TRACE", "/health", 405),
        ("HEAD", "/health", 405),
    ],
)
def test_every_other_method_is_refused(
    front: Fronted, method: str, target: str, status: int
) -> None:
    caller = front.call()
    caller.sendall(request_of(method, target))
    head = caller.recv(65536)
    assert head.startswith(f"HTTP/1.1 {status} ".encode())


def test_an_answer_to_head_has_no_body_and_is_no_bug(server_folder: ServerFolder) -> None:
    with fronted(server_folder) as front:
        for target in ("/health", "/v1/fleet/pull-messages", "/closed"):
            caller, told = front.call(), b""
            caller.sendall(request_of("HEAD", target))
            while chunk := caller.recv(65536):
                told += chunk
            assert told.startswith(b"HTTP/1.1 40")
            assert told.endswith(b"\r\n\r\n")
            caller.close()
        front.until_left()
        assert front.reasons == ["method-closed", "method-closed", "path-closed"]


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"], 400),
        (["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"], 400),
        (["Content-Length: 0", "Transfer-Encoding: chunked"], 411),
        (["Transfer-Encoding: chunked"], 411),
        (["Transfer-Encoding: gzip, chunked"], 501),
        (["Content-Length: 1", "Content-Length: 2"], 400),
        (["Content-Length: -1"], 400),
        (["Content-Length: +1"], 400),
        (["Content-Length: 1e3"], 400),
        (["Content-Length: 99999999999999999999999"], 400),
        (["Content-Length: 65537"], 413),
        (["Bad Header: x"], 400),
        (["X: " + "y" * 30_000], 431),
    ],
)
def test_requests_that_could_be_read_in_two_ways_or_are_too_large_are_refused(
    front: Fronted, lines: list[str], status: int
) -> None:
    head = ["POST /v1/fleet/push-object HTTP/1.1", "Host: x", *lines, "", ""]
    before = len(front.behind.seen)
    answer = front.ask("\r\n".join(head).encode())
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert len(front.behind.seen) == before


@pytest.mark.parametrize(
    "text",
    [
        b"\x16\x03\x01 no http\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /v1/fleet/push-object HTTP/1.0\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/fleet/push-object\r\n\r\n",
        b"POST /v1/fleet/push-object HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_http_of_today_is_refused(front: Fronted, text: bytes) -> None:
    assert front.ask(text).status in (400, 404, 505)


def test_a_body_that_holds_another_request_is_a_body(front: Fronted) -> None:
    inner = request_of("POST", "/v1/control/start-run", b"evil")
    caller = front.call()
    assert json.loads(front.ask(request_of("POST", "/v1/fleet/push-object", inner), caller).body)[
        "bytes"
    ] == len(inner)
    caller.settimeout(0.05)
    with pytest.raises(TimeoutError):
        caller.recv(1)


def test_pipelined_requests_are_each_judged(front: Fronted) -> None:
    caller = front.call()
    good, bad = request_of("GET", "/health"), request_of("POST", "/v1/control/start-run")
    caller.sendall(good + good + bad + good)
    seen = b""
    while chunk := caller.recv(65536):
        seen += chunk
    statuses = [line.split()[1] for line in seen.split(b"\r\n") if line.startswith(b"HTTP/1.1")]
    assert statuses == [b"200", b"200", b"404"]


def test_a_caller_that_waits_to_be_told_to_go_on_is_told(front: Fronted) -> None:
    caller = front.call()
    head = "POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n"
    caller.sendall(f"{head}Expect: 100-continue\r\n\r\n".encode())
    assert caller.recv(65536).startswith(b"HTTP/1.1 100 ")
    caller.sendall(b"abc")
    assert json.loads(read_answer(caller).body)["bytes"] == 3


def test_half_an_answer_is_never_taken_for_a_whole_one(front: Fronted) -> None:
    with pytest.raises(ConnectionError, match="of 1000"):
        front.post("/v1/fleet/get-run")
    front.until("answer-cut-off")


def test_a_superlink_that_is_away_is_a_502_which_flower_tries_again(
    server_folder: ServerFolder,
) -> None:
    with fronted(server_folder) as front:
        front.behind.shutdown()
        front.behind.server_close()
        assert front.post("/v1/fleet/pull-messages").status == 502
        assert front.ask(request_of("GET", "/health")).status == 502
        assert front.reasons == ["superlink-away"] * 2
        assert front.shared.buffered_bytes == 0


def test_a_superlink_with_another_certificate_is_not_spoken_to(
    server_folder: ServerFolder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = made_folder(tmp_path_factory.mktemp("other"))
    with fronted(server_folder) as front:
        front.shared.upstream = Upstream(
            f"https://127.0.0.1:{front.behind.server_port}", other.authority, front.shared.limits
        )
        assert front.post("/v1/fleet/pull-messages").status == 502
        assert front.behind.seen == []


def test_an_address_that_asks_too_often_is_told_to_come_back(server_folder: ServerFolder) -> None:
    with fronted(server_folder, requests_per_s=0.001, burst=3) as front:
        answers = [front.post("/v1/fleet/push-object") for _ in range(5)]
        assert [each.status for each in answers] == [200, 200, 200, 503, 503]
        assert answers[-1].headers["retry-after"] == "1"
        assert front.reasons == ["rate", "rate"]


def test_a_device_that_sends_too_much_is_told_to_come_back_and_no_other(
    server_folder: ServerFolder,
) -> None:
    piece, path = b"x" * 2**15, "/v1/fleet/push-object"
    with fronted(server_folder, body_bytes=2**16, bytes_per_minute=2**17) as front:
        answers = [front.post(path, piece, "flwr-public-key: a2V5") for _ in range(6)]
        assert [each.status for each in answers] == [200, 200, 200, 200, 503, 503]
        assert answers[-1].headers["retry-after"] == "1"
        assert front.reasons == ["volume", "volume"]
        assert front.shared.buffered_bytes == 0
        assert len(front.behind.seen) == 4
        # Small requests and another device behind the same address go on.
        assert front.post("/v1/fleet/pull-messages", b"", "flwr-public-key: a2V5").status == 307
        assert front.post(path, piece, "flwr-public-key: b3RoZXI=").status == 200


def test_a_body_that_is_allowed_is_never_more_than_a_device_may_send() -> None:
    assert Limits(body_bytes=2**20, bytes_per_minute=2**16).volume_bytes == 2**20
    assert Limits().volume_bytes == 64 * 2**20


def test_an_announcement_of_a_reply_is_small(server_folder: ServerFolder) -> None:
    with fronted(server_folder) as front:
        body = b"x" * LARGEST_ANNOUNCEMENT
        assert front.post("/v1/fleet/push-messages", body).status == 200
        assert front.post("/v1/fleet/push-messages", body + b"x").status == 413
        assert front.post("/v1/fleet/push-object", body + b"x").status == 200


def test_all_bodies_together_are_bounded(server_folder: ServerFolder) -> None:
    with fronted(server_folder, body_bytes=2**16, buffered_bytes=2**16) as front:
        slow = front.call()
        slow.sendall(request_of("POST", "/v1/fleet/push-object", b"x" * 60_000)[:-1])
        while front.shared.buffered_bytes == 0:
            threading.Event().wait(0.01)
        assert front.post("/v1/fleet/push-object", b"x" * 10_000).status == 503
        slow.sendall(b"x")
        assert read_answer(slow).status == 200
        assert front.post("/v1/fleet/push-object", b"x" * 10_000).status == 200
        assert front.reasons == ["busy"]


def test_a_refused_body_is_read_so_that_the_refusal_arrives(server_folder: ServerFolder) -> None:
    with fronted(server_folder, body_bytes=2**16) as front:
        assert front.post("/v1/fleet/push-object", b"x" * 2**20).status == 413
        assert front.behind.seen == []


@pytest.mark.parametrize(
    ("sent", "limit", "reason"),
    [
        (b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nX", "header_s", "head-slow"),
        (request_of("POST", "/v1/fleet/push-object", b"abc")[:-1], "body_s", "body-slow"),
    ],
)
def test_a_caller_that_drips_is_cut_off(
    server_folder: ServerFolder, sent: bytes, limit: str, reason: str
) -> None:
    with fronted(server_folder, **{limit: 0.2}) as front:
        caller = front.call()
        caller.sendall(sent)
        assert caller.recv(1) == b""
        front.until(reason)
        front.until_left()
        assert front.behind.seen == []
        assert front.shared.buffered_bytes == 0


def test_a_caller_that_says_nothing_is_cut_off(server_folder: ServerFolder) -> None:
    with fronted(server_folder, idle_s=0.2, handshake_s=0.2) as front:
        assert front.call().recv(1) == b""
        with socket.create_connection(("127.0.0.1", front.port), timeout=30) as plain:
            assert plain.recv(1) == b""
        front.until("front.no-tls")
        front.until_left()


def test_a_superlink_that_hangs_holds_a_caller_no_longer_than_the_limit(
    server_folder: ServerFolder,
) -> None:
    with fronted(server_folder, answer_s=0.3) as front:
        assert front.post("/v1/fleet/get-fab").status == 502


def test_connections_are_bounded_before_tls(server_folder: ServerFolder) -> None:
    with fronted(server_folder, connections_per_address=2, connections=2) as front:
        callers = [front.call() for _ in range(2)]
        with socket.create_connection(("127.0.0.1", front.port), timeout=30) as third:
            assert third.recv(1) == b""
        front.until("connections")
        for each in callers:
            each.close()
        front.until_left()
        assert front.ask(request_of("GET", "/health")).status == 200


def test_one_address_cannot_take_all_connections(server_folder: ServerFolder) -> None:
    with fronted(server_folder, connections_per_address=1) as front:
        front.call()
        with pytest.raises((ConnectionError, ssl.SSLError)):
            front.call()
        front.until("connections-of-address")


def test_old_tls_is_not_spoken(server_folder: ServerFolder) -> None:
    ours = tls_of(server_folder.certificate, server_folder.key)
    assert ours.minimum_version is ssl.TLSVersion.TLSv1_2
