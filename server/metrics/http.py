"""The door of the exporter: three paths, GET and HEAD, one request per connection, all bounded."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST

from fleet.errors import InputError
from server.metrics.exporter import Exporter, Verdict

__all__ = ["LARGEST_HEAD", "LONGEST_S", "MOST_AT_ONCE", "Door", "answer"]

LARGEST_HEAD = 8 << 10
"""Bytes of a request's head; more are refused."""
LONGEST_S = 10.0
"""How long a request may take to arrive, and its answer to leave."""
MOST_AT_ONCE = 8
"""Requests at work at a time; the next ones are turned away."""
_END = b"\r\n\r\n"
_JSON = "application/json"
_WORDS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def answer(exporter: Exporter, method: str, path: str) -> tuple[int, str, bytes]:
    """Return status, content type and body of a request.

    Args:
        exporter: Whom to ask.
        method: Of HTTP.
        path: Without a query.
    """
    if method not in ("GET", "HEAD"):
        return _told(405, f"only GET and HEAD are answered, not {method[:16]}")
    if path == "/metrics":
        return 200, CONTENT_TYPE_LATEST, exporter.exposition()
    if path == "/health":
        return _verdict("ok", "failing", exporter.health())
    if path == "/ready":
        return _verdict("ready", "not-ready", exporter.readiness())
    return _told(404, "there are /metrics, /health and /ready")


def _verdict(well: str, ill: str, verdict: Verdict) -> tuple[int, str, bytes]:
    names = ("code", "message", "hint")
    reasons = [dict(zip(names, each, strict=True)) for each in verdict.reasons]
    body = {"status": well if verdict.ok else ill, "reasons": reasons}
    return 200 if verdict.ok else 503, _JSON, json.dumps(body).encode() + b"\n"


def _told(status: int, text: str) -> tuple[int, str, bytes]:
    return status, _JSON, json.dumps({"status": "refused", "message": text}).encode() + b"\n"


class Door(socketserver.TCPServer):
    """Answers until it is closed.

    Args:
        host: Address to listen on.
        port: 0 for any that is free.
        exporter: Whom to ask.
        longest_s: Longest request and longest answer, seconds.
        now: Monotonic seconds.

    Raises:
        InputError: ``port-taken``.
    """

    allow_reuse_address = True
    request_queue_size = 2 * MOST_AT_ONCE

    def __init__(
        self,
        host: str,
        port: int,
        exporter: Exporter,
        *,
        longest_s: float = LONGEST_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exporter, self._longest_s, self._now = exporter, longest_s, now
        self._free = threading.BoundedSemaphore(MOST_AT_ONCE)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), socketserver.BaseRequestHandler)
        except OSError as error:
            raise InputError(
                "port-taken",
                f"nobody can listen on {host}:{port} ({error.strerror or error})",
                "Choose another address: --listen HOST:PORT.",
            ) from error
        self._serving = threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.server_address[1])

    def __enter__(self) -> Door:
        self._serving.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()
        self.server_close()
        self._serving.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, or turn away."""
        if not self._free.acquire(blocking=False):
            self._leave(request, "GET", _told(503, f"at most {MOST_AT_ONCE} requests at a time"))
            return
        threading.Thread(target=self._serve, args=(request,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a caller that went away."""

    def _serve(self, request: socket.socket) -> None:
        try:
            head = self._head(request)
            if isinstance(head, int):
                self._leave(request, "GET", _told(head, _WORDS[head].lower()))
                return
            words = head.split(_END[:2], 1)[0].decode("latin-1").split(" ")
            if len(words) != 3 or not words[2].startswith("HTTP/1."):
                self._leave(request, "GET", _told(400, "this is no HTTP/1.1 request"))
                return
            found = answer(self._exporter, words[0], words[1].partition("?")[0])
            self._leave(request, words[0], found)
        except OSError:  # the caller went away
            pass
        finally:
            self.shutdown_request(request)
            self._free.release()

    def _head(self, request: socket.socket) -> bytes | int:
        """Read a request's head; return the status of a refusal where there is none in bounds."""
        until, head = self._now() + self._longest_s, b""
        while _END not in head:
            if len(head) > LARGEST_HEAD:
                return 431
            left = until - self._now()
            if left <= 0:
                return 408
            request.settimeout(left)
            try:
                more = request.recv(LARGEST_HEAD)
            except TimeoutError:
                return 408
            if not more:
                return 400
            head += more
        return head if len(head) <= LARGEST_HEAD else 431

    def _leave(self, request: socket.socket, method: str, said: tuple[int, str, bytes]) -> None:
        status, kind, body = said
        head = (
            f"HTTP/1.1 {status} {_WORDS[status]}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
        )
        try:
            # The limit of sendall is for all of it, not for each piece,
            # and the thread that listens never waits.
            listens = threading.current_thread() is self._serving
            request.settimeout(0.0 if listens else self._longest_s)
            request.sendall(head.encode() + (b"" if method == "HEAD" else body))
        except OSError:
            pass
        self.shutdown_request(request)
