from __future__ import annotations

import math
import signal
import socket as sockets
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from clients.link import agent_pb2 as pb
from clients.link.caller import AWAY_S, MOST_LOSSES, RETRY_S, ask, ping
from clients.link.records import LARGEST_MESSAGE_BYTES, LINK_FORMAT, Answer, Declined, Request
from clients.link.service import Server, serve
from clients.link.transport import SERVICE, address_of
from fleet.federate.wire import Payload
from tests.clients.link.agent_process import PATIENCE_S, about, echo, request_of, started


class Clock:
    """A clock that only waiting moves; ``then`` is called after so many waits."""

    def __init__(self, then: Callable[[], object] = lambda: None, after: int = 0) -> None:
        self.time = 1000.0
        self.waits: list[float] = []
        self._then, self._after = then, after

    def now(self) -> float:
        return self.time

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.time += seconds
        if len(self.waits) == self._after:
            self._then()


def test_an_agent_that_stays_away_is_waited_for_so_long_and_no_longer(socket: Path) -> None:
    clock = Clock()
    answer = ask(socket, request_of(limit_s=3600.0), now=clock.now, wait=clock.wait)
    assert isinstance(answer, Declined)
    assert answer.code == "agent-away"
    assert answer.detail.startswith(f"not now, because no agent answered on {socket} within 20.0 s")
    assert sum(clock.waits) == pytest.approx(AWAY_S)
    assert max(clock.waits) == RETRY_S


def test_an_agent_is_never_waited_for_longer_than_the_limit(socket: Path) -> None:
    clock = Clock()
    answer = ask(socket, request_of(limit_s=3.1), now=clock.now, wait=clock.wait)
    assert isinstance(answer, Declined)
    assert answer.code == "agent-away"
    assert sum(clock.waits) == pytest.approx(3.1)


def test_an_agent_that_comes_back_in_time_answers_with_what_is_left(socket: Path) -> None:
    seen: list[Request] = []

    def answer(request: Request) -> Answer:
        seen.append(request)
        return request.payload

    with ExitStack() as stack:
        clock = Clock(lambda: stack.enter_context(serve(socket, answer, about)), after=8)
        found = ask(socket, request_of(limit_s=30.0), now=clock.now, wait=clock.wait)
    assert isinstance(found, Payload)
    assert len(clock.waits) == 8
    assert seen[0].limit_s == pytest.approx(30.0 - 8 * RETRY_S)


def test_a_stale_socket_is_an_agent_that_is_away(socket: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as left:
        left.bind(str(socket))
        left.listen()
    clock = Clock()
    answer = ask(socket, request_of(), now=clock.now, wait=clock.wait, away_s=1.0)
    assert isinstance(answer, Declined)
    assert (answer.code, "refused" in answer.detail) == ("agent-away", True)
    assert ping(socket, PATIENCE_S) is None


def test_an_agent_killed_at_work_is_asked_again_when_it_is_back(socket: Path) -> None:
    with ExitStack() as stack:
        process = stack.enter_context(started(socket, "hang"))

        def kill_at_work() -> None:
            assert process.stdout is not None
            assert process.stdout.readline() == "taken\n"
            process.send_signal(signal.SIGKILL)
            assert process.wait(PATIENCE_S) == -signal.SIGKILL

        pool = stack.enter_context(ThreadPoolExecutor(1))
        killed = pool.submit(kill_at_work)

        def come_back() -> None:
            # The caller hears of the end a moment before the socket's lock is free again.
            killed.result(PATIENCE_S)
            stack.enter_context(serve(socket, echo, about))

        clock = Clock(come_back, after=3)
        answer = ask(socket, request_of(), now=clock.now, wait=clock.wait, away_s=5.0)
    assert isinstance(answer, Payload)
    assert answer.array.tolist() == [0, 1, 2, 3, 4]


def test_an_agent_that_was_lost_is_away_from_then_on(socket: Path, losing: Losing) -> None:
    losing.restart()
    clock = Clock(losing.stay_away, after=1)

    def work() -> None:
        clock.time += 10.0

    losing.work = work
    answer = ask(socket, request_of(limit_s=60.0), now=clock.now, wait=clock.wait, away_s=2.0)
    assert isinstance(answer, Declined)
    assert answer.code == "agent-away"
    assert sum(clock.waits) == pytest.approx(2.0)


def test_an_agent_lost_again_and_again_at_one_message_is_not_asked_for_ever(
    socket: Path, losing: Losing
) -> None:
    losing.restart()
    answer = ask(socket, request_of(), wait=lambda seconds: losing.restart())
    assert isinstance(answer, Declined)
    assert answer.code == "agent-away"
    assert f"lost {MOST_LOSSES} times at work on this message" in answer.detail
    assert losing.taken == MOST_LOSSES


class Losing:
    """An agent that ends as soon as it is at work."""

    def __init__(self, socket: Path) -> None:
        self.taken = 0
        self.work: Callable[[], None] = lambda: None
        self._socket = socket
        self._server: Server | None = None
        self._gate = threading.Event()
        self._ends = ThreadPoolExecutor(1)

    def restart(self) -> None:
        self._ends.submit(lambda: None).result(PATIENCE_S)  # the former one has ended by then
        self._server = serve(self._socket, self._answer, about)

    def stay_away(self) -> None:
        self._ends.submit(lambda: None).result(PATIENCE_S)

    def close(self) -> None:
        self._gate.set()
        self._ends.shutdown()
        if self._server is not None:
            self._server.close(0)

    def _answer(self, request: Request) -> Answer:
        self.taken += 1
        self.work()
        assert self._server is not None
        self._ends.submit(self._server.close, 0)
        assert self._gate.wait(PATIENCE_S)
        return request.payload


@pytest.fixture
def losing(socket: Path) -> Iterator[Losing]:
    made = Losing(socket)
    yield made
    made.close()


def test_an_agent_that_never_answers_costs_no_more_than_the_limit(socket: Path) -> None:
    with started(socket, "hang"):
        answer = ask(socket, request_of(limit_s=0.5))
        assert answer == Declined(
            "agent-busy",
            "not now, because the agent did not answer within 0.5 s;"
            " its answer is kept for the next message of this plan",
        )
        assert ping(socket, PATIENCE_S) is not None


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    state = Path(f"/proc/{process.pid}/stat")
    while state.read_text().rsplit(")", 1)[1].split()[0] != "T":
        pass


def test_a_stopped_agent_costs_no_more_than_the_limit(socket: Path) -> None:
    with started(socket, "echo") as process:
        stop(process)
        answer = ask(socket, request_of(limit_s=0.5))
        assert isinstance(answer, Declined)
        assert (answer.code, "did not take this message" in answer.detail) == ("agent-busy", True)
        assert ping(socket, 0.2) is None
        process.send_signal(signal.SIGCONT)
        assert isinstance(ask(socket, request_of()), Payload)


def test_a_stopped_agent_is_away_long_before_a_long_limit(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [("grpc.min_reconnect_backoff_ms", 200), ("grpc.use_local_subchannel_pool", 1)]
    monkeypatch.setattr("clients.link.caller.CHANNEL_OPTIONS", options)
    with started(socket, "echo") as process:
        stop(process)
        answer = ask(socket, request_of(limit_s=3600.0), away_s=0.5)
    assert isinstance(answer, Declined)
    assert answer.code == "agent-away"


def test_whatever_else_listens_there_is_no_agent(socket: Path) -> None:
    def babble(listener: sockets.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nwelcome" * 20)

    with sockets.socket(sockets.AF_UNIX) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(str(socket))
        listener.listen()
        pool.submit(babble, listener)
        clock = Clock()
        answer = ask(socket, request_of(), now=clock.now, wait=clock.wait, away_s=1.0)
        assert ping(socket, PATIENCE_S) is None
        listener.shutdown(sockets.SHUT_RDWR)
    assert isinstance(answer, Declined)
    assert answer.code == "agent-away"


@contextmanager
def replying(socket: Path, method: str, reply: bytes) -> Iterator[None]:
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.max_send_message_length", -1)])
    calls = {method: grpc.unary_unary_rpc_method_handler(lambda data, context: reply)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, calls),))
    server.add_insecure_port(address_of(socket))
    server.start()
    yield
    server.stop(None).wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("method", "reply", "code", "says"),
    [
        ("Answer", b"\xff\xff", "agent-malformed", "cannot be read"),
        ("Answer", b"", "agent-malformed", "no format is named"),
        ("Answer", bytes(LARGEST_MESSAGE_BYTES + 4096), "agent-malformed", "larger than max"),
        ("Another", b"", "agent-malformed", "UNIMPLEMENTED"),
        (
            "Answer",
            pb.Response(format=LINK_FORMAT + 1).SerializeToString(),
            "link-format",
            "upgrade the bridge",
        ),
    ],
    ids=["garbage", "empty", "too-large", "unknown", "newer"],
)
def test_a_reply_that_makes_no_sense_is_a_reason(
    socket: Path, method: str, reply: bytes, code: str, says: str
) -> None:
    with replying(socket, method, reply):
        answer = ask(socket, request_of())
    assert isinstance(answer, Declined)
    assert answer.code == code
    assert says in answer.detail


def test_a_ping_that_makes_no_sense_is_nobody(socket: Path) -> None:
    with replying(socket, "Ping", b"\xff\xff"):
        assert ping(socket, PATIENCE_S) is None


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (
            Request("train", Payload(np.zeros(LARGEST_MESSAGE_BYTES, np.float32), {}), 1.0),
            "link-too-large",
        ),
        (request_of(config={"n": 2**63}), "link-unsayable"),
        (request_of(limit_s=math.inf), "link-unsayable"),
    ],
)
def test_what_cannot_be_asked_is_a_reason(socket: Path, request_: Request, code: str) -> None:
    answer = ask(socket, request_)
    assert isinstance(answer, Declined)
    assert answer.code == code


def test_a_limit_that_has_passed_asks_nobody(socket: Path) -> None:
    answer = ask(socket, request_of(limit_s=0.0))
    assert isinstance(answer, Declined)
    assert answer.code == "agent-away"
