from __future__ import annotations

import logging
import socket as sockets
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from clients.link import agent_pb2 as pb
from clients.link.caller import ask, ping
from clients.link.messages import decode_answer, encode_request
from clients.link.records import (
    LARGEST_MESSAGE_BYTES,
    LARGEST_PATH_BYTES,
    LINK_FORMAT,
    STOPPING,
    Answer,
    Declined,
    Metrics,
    Request,
)
from clients.link.service import MOST_ANSWERS, serve
from clients.link.transport import ANSWER, CHANNEL_OPTIONS, address_of
from fleet.errors import InputError, RoundError, StorageError
from fleet.federate.wire import Payload
from tests.clients.link.agent_process import PATIENCE_S, Serve, about, echo, request_of

EMPTY = np.zeros(0, np.float32)


def test_a_socket_is_its_users_alone(socket: Path, agent: Serve) -> None:
    agent(echo)
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700


def test_a_missing_folder_is_made_for_the_user_alone(folder: Path) -> None:
    socket = folder / "state" / "agent.sock"
    with serve(socket, echo, about):
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert ping(socket, PATIENCE_S) == about()


def test_a_folder_that_others_may_enter_is_refused_with_the_fix(socket: Path) -> None:
    socket.parent.chmod(0o750)
    with pytest.raises(InputError, match="its mode is 750") as caught:
        serve(socket, echo, about)
    assert (caught.value.code, caught.value.hint) == ("socket-folder", f"chmod 700 {socket.parent}")


@pytest.mark.parametrize("name", ["", "ä %41#?:"])
def test_a_path_may_have_any_characters_and_107_bytes(folder: Path, name: str) -> None:
    start = folder / f"{name}x"
    socket = Path(f"{start}{'x' * (LARGEST_PATH_BYTES - len(bytes(start)))}")
    assert len(bytes(socket)) == LARGEST_PATH_BYTES
    with serve(socket, echo, about):
        assert socket.is_socket()
        assert ping(socket, PATIENCE_S) == about()


def test_a_path_of_108_bytes_is_refused_with_the_fix(folder: Path) -> None:
    socket = folder / ("x" * (LARGEST_PATH_BYTES - len(bytes(folder))))
    with pytest.raises(InputError, match=r"at most 107 bytes; .* takes 108") as caught:
        serve(socket, echo, about)
    assert caught.value.code == "socket-path"
    assert "shorter path" in caught.value.hint
    assert ask(socket, request_of()) == Declined("socket-path", caught.value.message)
    assert ping(socket, PATIENCE_S) is None


def test_a_stale_socket_is_replaced(socket: Path, agent: Serve) -> None:
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(str(socket))
        left.listen()
    assert socket.is_socket()
    agent(echo)
    assert ping(socket, PATIENCE_S) == about()


@pytest.mark.parametrize("waiting", [0, 1])
def test_a_socket_that_somebody_listens_on_is_left_alone(socket: Path, waiting: int) -> None:
    with sockets.socket(sockets.AF_UNIX) as other, sockets.socket(sockets.AF_UNIX) as caller:
        other.bind(str(socket))
        other.listen(0)
        if waiting:
            caller.connect(str(socket))
        with pytest.raises(StorageError) as caught:
            serve(socket, echo, about)
        assert caught.value.code == "agent-running"
        assert socket.is_socket()


def test_a_second_agent_is_refused_also_before_the_first_has_its_socket(
    socket: Path, agent: Serve
) -> None:
    server = agent(echo)
    socket.unlink()
    with pytest.raises(StorageError, match="another agent answers on"):
        agent(echo)
    server.close()
    agent(echo)
    assert ping(socket, PATIENCE_S) == about()


def test_a_file_in_the_place_of_the_socket_stays(socket: Path) -> None:
    socket.write_text("precious")
    with pytest.raises(InputError, match="is no socket"):
        serve(socket, echo, about)
    assert socket.read_text() == "precious"


def test_a_folder_that_cannot_be_made_is_refused(folder: Path) -> None:
    (folder / "file").write_text("")
    with pytest.raises(StorageError, match="no socket can be made"):
        serve(folder / "file" / "agent.sock", echo, about)


def test_a_closed_server_leaves_no_socket_and_a_next_one_answers_at_once(
    socket: Path, agent: Serve
) -> None:
    for _ in range(5):
        server = agent(echo)
        assert ping(socket, PATIENCE_S) == about()
        server.close()
        server.close()
        assert not socket.exists()
        assert ping(socket, PATIENCE_S) is None


def test_each_kind_of_answer_arrives(socket: Path, agent: Serve) -> None:
    seen: list[Request] = []
    answers: dict[str, Answer] = {
        "evaluate": Metrics({"num-examples": 3, "loss": 0.5, "confusion": [1, 0, 0, 2]}),
        "query.status": Payload(EMPTY, {"device": "device-1", "train_windows": 4}),
        "train": Declined("too-hot", "91 °C"),
    }

    def answer(request: Request) -> Answer:
        seen.append(request)
        return answers[request.kind]

    agent(answer)
    assert ask(socket, request_of("evaluate")) == answers["evaluate"]
    assert ask(socket, request_of("train", 7.0)) == answers["train"]
    status = ask(socket, request_of("query.status"))
    assert isinstance(status, Payload)
    assert (status.config, status.array.size) == ({"device": "device-1", "train_windows": 4}, 0)
    assert [request.kind for request in seen] == ["evaluate", "train", "query.status"]
    assert seen[1].limit_s == pytest.approx(7.0, abs=1.0)
    assert seen[0].payload.array.tolist() == [0, 1, 2, 3, 4]


def test_a_message_near_the_limit_passes_both_ways(socket: Path, agent: Serve) -> None:
    agent(echo)
    array = np.ones(LARGEST_MESSAGE_BYTES // 4 - 64, np.float32)
    answer = ask(socket, Request("train", Payload(array, {}), PATIENCE_S))
    assert isinstance(answer, Payload)
    assert np.array_equal(answer.array, array)


@pytest.mark.parametrize(
    ("error", "code", "detail"),
    [
        (RoundError("too-hot", "91 °C"), "too-hot", "91 °C"),
        (StorageError("disk-full", "no space"), "disk-full", "no space"),
        (KeyError("ada"), "agent-failed", "KeyError; the agent's log has the rest"),
        (SystemExit(3), "agent-failed", "SystemExit; the agent's log has the rest"),
    ],
)
def test_what_an_answer_raises_is_a_reason_and_the_server_goes_on(
    socket: Path,
    agent: Serve,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    code: str,
    detail: str,
) -> None:
    errors = [error]

    def answer(request: Request) -> Answer:
        if errors:
            raise errors.pop()
        return request.payload

    agent(answer)
    assert ask(socket, request_of()) == Declined(code, detail)
    logged = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(logged) == (code == "agent-failed")
    assert all(record.exc_info for record in logged)
    assert isinstance(ask(socket, request_of()), Payload)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (Payload(np.zeros(LARGEST_MESSAGE_BYTES // 4 + 1, np.float32), {}), "link-too-large"),
        (Metrics({"n": 2**63}), "link-unsayable"),
        (None, "link-unsayable"),
    ],
)
def test_an_answer_that_cannot_travel_is_a_reason(
    socket: Path, agent: Serve, answer: Answer, code: str
) -> None:
    agent(lambda request: answer)
    found = ask(socket, request_of())
    assert isinstance(found, Declined)
    assert found.code == code


def raw(socket: Path, data: bytes) -> Answer:
    with grpc.insecure_channel(address_of(socket), options=CHANNEL_OPTIONS) as channel:
        return decode_answer(channel.unary_unary(ANSWER)(data, timeout=PATIENCE_S))


def test_bytes_that_are_no_request_are_answered_with_a_reason(socket: Path, agent: Serve) -> None:
    agent(echo)
    found = raw(socket, b"\xff\xff")
    assert isinstance(found, Declined)
    assert found.code == "link-malformed"


def test_a_bridge_of_another_format_hears_which_side_is_behind(socket: Path, agent: Serve) -> None:
    agent(echo)
    request = pb.Request.FromString(encode_request(request_of()))
    request.format = LINK_FORMAT + 1
    found = raw(socket, request.SerializeToString())
    assert isinstance(found, Declined)
    assert found.code == "link-format"
    assert f"link format {LINK_FORMAT}, the bridge sent {LINK_FORMAT + 1}" in found.detail
    assert found.detail.endswith("upgrade the agent")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Opens at the latest when the test ends, so that no answer is held for ever."""
    event = threading.Event()
    yield event
    event.set()


def test_an_agent_with_too_much_at_work_says_so_and_still_tells_who_it_is(
    socket: Path, agent: Serve, gate: threading.Event
) -> None:
    at_work = threading.Semaphore(0)

    def answer(request: Request) -> Answer:
        at_work.release()
        assert gate.wait(PATIENCE_S)
        return request.payload

    agent(answer)
    with ThreadPoolExecutor(MOST_ANSWERS) as pool:
        asked = [pool.submit(ask, socket, request_of()) for _ in range(MOST_ANSWERS)]
        assert all(at_work.acquire(timeout=PATIENCE_S) for _ in range(MOST_ANSWERS))
        beyond = ask(socket, request_of())
        assert isinstance(beyond, Declined)
        assert (beyond.code, f"{MOST_ANSWERS} messages at work" in beyond.detail) == ("busy", True)
        assert ping(socket, PATIENCE_S) == about()
        gate.set()
        assert all(isinstance(each.result(PATIENCE_S), Payload) for each in asked)
    assert isinstance(ask(socket, request_of()), Payload)


def test_an_answer_that_nobody_waits_for_any_more_is_no_error(
    socket: Path, agent: Serve, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    returned = threading.Event()

    def answer(request: Request) -> Answer:
        if request.kind == "train":
            assert gate.wait(PATIENCE_S)
            returned.set()
        return request.payload

    server = agent(answer)
    late = ask(socket, request_of("train", 0.3))
    assert isinstance(late, Declined)
    assert late.code == "agent-busy"
    gate.set()
    assert returned.wait(PATIENCE_S)
    assert isinstance(ask(socket, request_of("evaluate")), Payload)
    server.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_work_that_an_ending_agent_lays_aside_is_asked_for_again(
    socket: Path, agent: Serve
) -> None:
    asked = []

    def answer(request: Request) -> Answer:
        asked.append(request.kind)
        if len(asked) == 1:
            raise RoundError(STOPPING, "the agent ends; it will go on")
        return request.payload

    agent(answer)
    assert isinstance(ask(socket, request_of("train")), Payload)
    assert asked == ["train", "train"]


def test_an_agent_that_does_not_know_itself_is_nobody(
    socket: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def nobody() -> None:
        raise RuntimeError("no name")

    with serve(socket, echo, nobody):  # type: ignore[arg-type]
        assert ping(socket, PATIENCE_S) is None
        assert isinstance(ask(socket, request_of()), Payload)
    assert "no name" in caplog.text
