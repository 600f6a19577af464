"""The control API: gRPC over mutual TLS; who asks is their certificate, what they may its role.

certificate ──► Identity ──► revoked? ──► VERBS[method].role ──► run(fleet, actor, request)
an error leaves as a gRPC status, with the envelope that a command would print in its trailer
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from fleet.commands import error_envelope
from fleet.errors import FleetError, InputError, MismatchError, RoundError, UnavailableError
from server.control.certificates import Identity, identity_of
from server.control.errors import AccessError, LateError
from server.control.messages import (
    decode_request,
    decode_watch,
    encode_answer,
    encode_event,
)
from server.control.operators import Operators
from server.control.roles import Role
from server.control.table import VERBS, WATCH_ROLE, Verb
from server.control.transport import (
    ERROR,
    LARGEST_ANSWER_BYTES,
    SERVER_OPTIONS,
    SERVICE,
    largest_request,
)
from server.control.verbs.fleet import Fleet
from server.control.watching import follow
from server.service.authority import Pair

__all__ = ["CLOSE_S", "MOST_CALLS", "MOST_PROBES", "MOST_WATCHES", "Server", "serve", "status_of"]

MOST_CALLS = 8
"""Requests at work at a time; more are refused, and may come again."""
MOST_WATCHES = 16
MOST_PROBES = 4
"""Of these somebody may ask whether the service is healthy while all others are busy."""
LONGEST_CALL_S = 900.0
"""Whatever deadline a caller brings, it is not waited longer."""
CLOSE_S = 5.0
"""How long a closing server lets running answers end."""
LARGEST_TOLD = 3000
"""Characters of an error's message and hint in the trailer."""

_log = logging.getLogger(__name__)


def serve(fleet: Fleet, address: str, own: Pair, root: bytes) -> Server:
    """Answer operators until the server is closed.

    Args:
        fleet: What to work on; the caller closes its registry after the server.
        address: ``HOST:PORT``; port 0 for any free one.
        own: The server's certificate and key.
        root: Certificate (PEM) of whoever signs operators.

    Raises:
        UnavailableError: ``address-taken``.
    """
    calls = _Calls(fleet)
    server = grpc.server(
        ThreadPoolExecutor(
            MOST_CALLS + MOST_WATCHES + MOST_PROBES, thread_name_prefix="control-call"
        ),
        maximum_concurrent_rpcs=MOST_CALLS + MOST_WATCHES + MOST_PROBES,
        options=SERVER_OPTIONS,
    )
    # Bytes in and out: what cannot be read is answered with a reason, which gRPC would not do.
    methods = {name: grpc.unary_unary_rpc_method_handler(calls.unary(name)) for name in VERBS} | {
        "Watch": grpc.unary_stream_rpc_method_handler(calls.watch)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    checks = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    credentials = grpc.ssl_server_credentials(
        [(own.key, own.certificate)], root_certificates=root, require_client_auth=True
    )
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise UnavailableError(
            "address-taken", f"nothing can listen on {address}: {error}", "Choose another port."
        ) from error
    server.start()
    for name in ("", SERVICE):
        checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    return Server(server, calls, checks, port)


class Server:
    """A running control API, see :func:`serve`; closing it twice does nothing.

    Args:
        server: gRPC's own.
        calls: What it calls.
        checks: Its health.
        port: On which it listens.
    """

    def __init__(self, server: Any, calls: _Calls, checks: Any, port: int) -> None:
        self._server, self._calls, self._checks = server, calls, checks
        self.port = port

    def close(self, grace_s: float = CLOSE_S) -> None:
        """Take no more requests, end watches, give running answers ``grace_s`` seconds."""
        self._checks.enter_graceful_shutdown()
        self._calls.stopping.set()
        self._server.stop(grace_s).wait(grace_s + CLOSE_S)
        self._calls.workers.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Watcher:
    """Lets a watch wait until its reader has gone or the server ends."""

    stopping: threading.Event
    context: Any

    def wait(self, seconds: float) -> bool:
        return self.stopping.wait(seconds) or not self.context.is_active()


class _Calls:
    """What gRPC calls, with bytes in and out."""

    def __init__(self, fleet: Fleet) -> None:
        self.stopping = threading.Event()
        self.workers = ThreadPoolExecutor(MOST_CALLS, thread_name_prefix="control")
        self._fleet = fleet
        self._operators = Operators(fleet.registry, fleet.clock)
        self._free = threading.BoundedSemaphore(MOST_CALLS)
        self._watches = threading.BoundedSemaphore(MOST_WATCHES)

    def unary(self, name: str) -> Callable[[bytes, Any], bytes]:
        """Return the handler of a verb."""
        verb = VERBS[name]

        def handle(data: bytes, context: Any) -> bytes:
            try:
                who = self._allowed(verb.role, name, context)
                return self._answered(name, verb, who, data, context)
            except FleetError as error:
                _abort(context, error)
            except Exception:
                _log.exception("the verb %s failed", name)
                _abort(context, _bug(name))

        return handle

    def watch(self, data: bytes, context: Any) -> Iterator[bytes]:
        """Yield events."""
        if not self._watches.acquire(blocking=False):
            _abort(context, _busy(f"{MOST_WATCHES} watch already"))
        try:
            self._allowed(WATCH_ROLE, "Watch", context)
            after, limit_s = decode_watch(data)
            wait = _Watcher(self.stopping, context).wait
            for event in follow(self._fleet, after, limit_s, now=time.monotonic, wait=wait):
                self._allowed(WATCH_ROLE, "Watch", context)  # a long watch outlives its right
                yield encode_event(event)
        except FleetError as error:
            _abort(context, error)
        finally:
            self._watches.release()

    def _allowed(self, needed: Role, name: str, context: Any) -> Identity:
        found = context.auth_context().get("x509_pem_cert", [b""])[0]
        now = datetime.fromtimestamp(self._fleet.clock(), timezone.utc)
        who = identity_of(found, now)
        self._operators.check(who)
        if not who.role.allows(needed):
            raise AccessError(
                "role-needed",
                f"{name} is for the role {needed.value}; {who.name} is {who.role.value}",
                "Ask an admin of the server.",
            )
        return who

    def _answered(self, name: str, verb: Verb, who: Identity, data: bytes, context: Any) -> bytes:
        if len(data) > (largest := largest_request(name)):
            raise InputError(
                "request-too-large",
                f"a request for {name} has at most {largest} bytes, not {len(data)}",
                "",
            )
        request = decode_request(name, data)
        limit_s = _limit_of(context, verb)
        if not self._free.acquire(blocking=False):
            raise _busy(f"{MOST_CALLS} requests are at work")
        # Held until the work ends, also when its caller has gone.
        future = self.workers.submit(verb.run, self._fleet, who.name, request)
        future.add_done_callback(lambda _: self._free.release())
        try:
            answer = encode_answer(future.result(timeout=limit_s))
        except TimeoutError:
            raise LateError(
                "control-late",
                f"{name} was not done within {limit_s:.1f} s; it may still be",
                "Ask again with the same idempotency key: it is done once.",
            ) from None
        if len(answer) > LARGEST_ANSWER_BYTES:
            raise InputError(
                "answer-too-large",
                f"the answer has {len(answer)} bytes, at most {LARGEST_ANSWER_BYTES} are sent",
                "Ask for less: --newest N.",
            )
        return answer


def status_of(error: FleetError) -> grpc.StatusCode:
    """Return the gRPC status of an error."""
    status = grpc.StatusCode
    if error.code in ("busy", "request-too-large"):
        return status.RESOURCE_EXHAUSTED
    if isinstance(error, AccessError):
        return status.PERMISSION_DENIED
    if isinstance(error, LateError):
        return status.DEADLINE_EXCEEDED
    if error.code.startswith("no-such-"):
        return status.NOT_FOUND
    if isinstance(error, (MismatchError, RoundError, UnavailableError)):
        return status.FAILED_PRECONDITION
    return status.INVALID_ARGUMENT if isinstance(error, InputError) else status.INTERNAL


def _limit_of(context: Any, verb: Verb) -> float:
    left = context.time_remaining()
    # A call without a deadline has one in the far future.
    if left is None or left > 100 * LONGEST_CALL_S:
        return verb.limit_s
    return float(min(left, LONGEST_CALL_S))


def _abort(context: Any, error: FleetError) -> NoReturn:
    told = type(error)(error.code, error.message[:LARGEST_TOLD], error.hint[:LARGEST_TOLD])
    told.exit_code = error.exit_code
    context.set_trailing_metadata(((ERROR, error_envelope(told).encode()),))
    context.abort(status_of(error), told.message)
    raise AssertionError("abort raises")


def _busy(why: str) -> FleetError:
    return FleetError("busy", f"not now: {why}", "Try again in a moment.")


def _bug(name: str) -> FleetError:
    error = FleetError("bug", f"the server failed at {name}; its log has the traceback", "")
    error.exit_code = 5
    return error
