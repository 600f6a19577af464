"""The agent's end of the link: a gRPC server on a Unix socket that only this user may open."""

from __future__ import annotations

import fcntl
import logging
import os
import socket as sockets
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from clients.link.messages import decode_request, encode_about, encode_answer
from clients.link.records import STOPPING, About, Answer, Declined, Request, path_problem
from clients.link.transport import SERVER_OPTIONS, SERVICE, TAKEN, address_of
from fleet.errors import FleetError, InputError, StorageError

__all__ = ["CLOSE_S", "MOST_ANSWERS", "MOST_PINGS", "Server", "serve"]

# Messages that are answered at once; a device trains one after the other, so more would only wait.
MOST_ANSWERS = 4
# Of these somebody may ask while all answers are busy.
MOST_PINGS = 4
# How long a closing server lets running answers end before their callers hear that it went away.
CLOSE_S = 5.0
# How long to look whether somebody answers on a socket that is already there.
PROBE_S = 1.0

_log = logging.getLogger(__name__)


def serve(socket: Path, answer: Callable[[Request], Answer], about: Callable[[], About]) -> Server:
    """Answer on a Unix socket until the server is closed.

    Args:
        socket: Where; at most 107 bytes. A stale one is replaced; its folder is made if need be.
        answer: Called in threads of the server, at most :data:`MOST_ANSWERS` at a time. What it
            raises is answered as a reason to decline. It goes on when its caller has given up, and
            the process cannot end before it returns.
        about: Who this is; must return at once.

    Raises:
        InputError: ``socket-path`` for a path that is too long, ``socket-taken`` when something
            else is there, ``socket-folder`` when others may enter its folder.
        StorageError: ``agent-running`` when an agent answers there, ``socket-refused``.
    """
    if problem := path_problem(socket):
        raise InputError("socket-path", problem, "Use a state directory with a shorter path.")
    try:
        _prepare_folder(socket.parent)
        lock = _lock(socket)
        try:
            _clear(socket)
            return Server(socket, lock, _start(socket, _Calls(answer, about)))
        except BaseException:
            os.close(lock)
            raise
    except OSError as error:
        raise _refusal(socket, error.strerror or str(error)) from error


class Server:
    """A running server, see :func:`serve`; closing it twice does nothing.

    Args:
        socket: Where it answers.
        lock: Descriptor of the locked file beside the socket.
        server: gRPC's own.
    """

    def __init__(self, socket: Path, lock: int, server: Any) -> None:
        self.socket = socket
        self._lock = lock
        self._server = server

    def close(self, grace_s: float = CLOSE_S) -> None:
        """Take no more messages, give running answers ``grace_s`` seconds, remove the socket."""
        if self._lock < 0:
            return
        self._server.stop(grace_s).wait(grace_s + CLOSE_S)
        with suppress(OSError):
            self.socket.unlink(missing_ok=True)
        # Last, so that a next agent finds the socket gone or locked.
        os.close(self._lock)
        self._lock = -1

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Calls:
    """What gRPC calls, with bytes in and out."""

    def __init__(self, answer: Callable[[Request], Answer], about: Callable[[], About]) -> None:
        self._answer = answer
        self._about = about
        self._free = threading.BoundedSemaphore(MOST_ANSWERS)

    def on_answer(self, data: bytes, context: Any) -> bytes:
        # Held until `answer` returns, also when its caller has gone: the agent is still busy.
        if not self._free.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MOST_ANSWERS} messages at work")
        try:
            context.send_initial_metadata(((TAKEN, "1"),))
            return self._answered(data, context)
        finally:
            self._free.release()

    def on_ping(self, data: bytes, context: Any) -> bytes:
        return encode_about(self._about())

    def _answered(self, data: bytes, context: Any) -> bytes:
        try:
            return encode_answer(self._answer(decode_request(data)))
        except FleetError as error:
            if error.code == STOPPING:
                # No answer: who asks looks for the next agent, which goes on with the work.
                context.abort(grpc.StatusCode.UNAVAILABLE, error.message)
            return encode_answer(Declined.because(error))
        except BaseException as error:  # also SystemExit: in this thread it would end nothing
            _log.exception("an answer failed")
            # Its words stay here: they may hold a label, and the answer goes to the server.
            detail = f"{type(error).__name__}; the agent's log has the rest"
            return encode_answer(Declined("agent-failed", detail))


def _start(socket: Path, calls: _Calls) -> Any:
    server = grpc.server(
        ThreadPoolExecutor(MOST_ANSWERS + MOST_PINGS, thread_name_prefix="link"),
        maximum_concurrent_rpcs=MOST_ANSWERS + MOST_PINGS,
        options=SERVER_OPTIONS,
    )
    # Bytes in and out: what cannot be read is answered with a reason, which gRPC would not do.
    methods = {
        "Answer": grpc.unary_unary_rpc_method_handler(calls.on_answer),
        "Ping": grpc.unary_unary_rpc_method_handler(calls.on_ping),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    try:
        server.add_insecure_port(address_of(socket))
    except RuntimeError as error:
        raise _refusal(socket, str(error)) from error
    # Until then the folder alone keeps others out.
    socket.chmod(0o600)
    server.start()
    return server


def _prepare_folder(folder: Path) -> None:
    """Make a folder that only this user may enter, or check that it is one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_mode & 0o077 or found.st_uid != os.geteuid():
        raise InputError(
            "socket-folder",
            f"{folder} must be this user's alone; its mode is {stat.S_IMODE(found.st_mode):o}"
            f" and its owner {found.st_uid}",
            f"chmod 700 {folder}",
        )


def _lock(socket: Path) -> int:
    """Lock the file beside a socket: two agents that start at once must not both find it free."""
    path = socket.with_name(f"{socket.name}.lock")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise _running(socket) from error
    return descriptor


def _clear(socket: Path) -> None:
    """Remove a socket that nobody listens on any more."""
    try:
        mode = socket.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InputError("socket-taken", f"{socket} is no socket", "Move it away.")
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(socket))
        except ConnectionRefusedError:
            socket.unlink(missing_ok=True)
            return
        except (TimeoutError, BlockingIOError):
            pass  # so many wait there that no more fit: somebody listens
    raise _running(socket)


def _running(socket: Path) -> StorageError:
    return StorageError(
        "agent-running",
        f"another agent answers on {socket}",
        "One agent runs per state directory; see: fleet-device status",
    )


def _refusal(socket: Path, why: str) -> StorageError:
    return StorageError(
        "socket-refused",
        f"no socket can be made at {socket}: {why}",
        "Check that this user may write into its folder.",
    )
