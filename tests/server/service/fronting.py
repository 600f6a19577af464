"""A front on loopback before a tiny HTTPS server, and a caller that writes its own bytes."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from server.service.config import Limits
from server.service.folder import ServerFolder
from server.service.front.connection import Shared
from server.service.front.events import Events
from server.service.front.listen import Listener, bound, tls_of
from server.service.front.rates import Rates
from server.service.front.upstream import Upstream

LIMIT_S = 30.0
BIG = 3 * 2**20


class Behind(BaseHTTPRequestHandler):
    """Stands in for the SuperLink; it tells what reached it."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        seen = {"path": self.path, "headers": headers, "bytes": len(body)}
        self.server.seen.append(seen)
        if self.path.endswith("pull-object"):
            self._answer(b"x" * BIG)
        elif self.path.endswith("get-run"):
            self.send_response(200)
            self.send_header("content-length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        elif self.path.endswith("get-fab"):
            self.server.held.wait(LIMIT_S)
            self._answer(b"late")
        elif self.path.endswith("pull-messages"):
            self.send_response(307)
            self.send_header("location", "/v1/control/list-nodes")
            self.send_header("content-length", "0")
            self.end_headers()
        else:
            self._answer(json.dumps(seen).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/protobuf")
        self.send_header("flwr-version-incompatibility-message", "old")
        self.send_header("set-cookie", "a=b")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(("127.0.0.1", 0), Behind)
        self.seen: list[dict[str, Any]] = []
        self.held = threading.Event()
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request: object, client_address: object) -> None:
        return


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Fronted:
    """A front that runs.

    Attributes:
        behind: What is behind it.
        shared: What its connections have in common.
    """

    folder: ServerFolder
    behind: Server
    shared: Shared
    listener: Listener
    port: int
    log: io.StringIO
    sockets: list[ssl.SSLSocket] = field(default_factory=list)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    @property
    def reasons(self) -> list[str]:
        return [each.get("reason", each["event"]) for each in self.events]

    def until(self, reason: str) -> None:
        """Wait for an event."""
        deadline, paced = time.monotonic() + LIMIT_S, threading.Event()
        while reason not in self.reasons:
            assert time.monotonic() < deadline, (reason, self.events)
            paced.wait(0.01)

    def until_left(self) -> None:
        """Wait until no connection is open."""
        deadline, paced = time.monotonic() + LIMIT_S, threading.Event()
        while self.listener.connections:
            assert time.monotonic() < deadline
            paced.wait(0.01)

    def call(self) -> ssl.SSLSocket:
        """Open a connection."""
        context = ssl.create_default_context(cafile=str(self.folder.authority))
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=LIMIT_S)
        secured = context.wrap_socket(plain, server_hostname="localhost")
        self.sockets.append(secured)
        return secured

    def ask(self, request: bytes, caller: ssl.SSLSocket | None = None) -> Answer:
        """Send bytes; return the answer to them."""
        caller = caller or self.call()
        caller.sendall(request)
        return read_answer(caller)

    def post(self, path: str, body: bytes = b"", *headers: str) -> Answer:
        return self.ask(request_of("POST", path, body, *headers))


def request_of(method: str, target: str, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: front", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_answer(caller: ssl.SSLSocket) -> Answer:
    """Read one answer; a connection that ends before one is a :class:`ConnectionError`."""
    head = b""
    while b"\r\n\r\n" not in head:
        chunk = caller.recv(65536)
        if not chunk:
            raise ConnectionError(f"no answer, only {head!r}")
        head += chunk
    top, _, body = head.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    length = int(headers.get("content-length", 0))
    while len(body) < length:
        chunk = caller.recv(65536)
        if not chunk:
            raise ConnectionError(f"only {len(body)} of {length} bytes")
        body += chunk
    return Answer(int(first.split()[1]), headers, body)


@contextmanager
def fronted(folder: ServerFolder, **limits: Any) -> Iterator[Fronted]:
    """Run a front with these limits; nothing of it outlives the block."""
    context = tls_of(folder.certificate, folder.key)
    behind = Server(context)
    serving = threading.Thread(target=behind.serve_forever, args=(0.01,), daemon=True)
    serving.start()
    log, socket_ = io.StringIO(), bound("127.0.0.1", 0)
    loop, given = asyncio.new_event_loop(), Limits(**limits)
    events = Events(log, time.monotonic, lambda: datetime.now(timezone.utc))
    rates = Rates(given.requests_per_s, given.burst, time.monotonic)
    volumes = Rates(given.volume_bytes / 60, given.volume_bytes, time.monotonic)
    address = f"https://127.0.0.1:{behind.server_port}"
    shared = Shared(given, rates, volumes, Upstream(address, folder.authority, given), events)
    listener = Listener(shared, context, socket_)
    port = socket_.getsockname()[1]
    running: list[asyncio.Task[None]] = []
    is_up = threading.Event()

    async def run() -> None:
        running.append(asyncio.ensure_future(listener.run()))
        is_up.set()
        await asyncio.gather(*running, return_exceptions=True)
        await shared.upstream.aclose()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    is_up.wait(LIMIT_S)
    found = Fronted(folder, behind, shared, listener, port, log)
    try:
        yield found
    finally:
        behind.held.set()
        for each in found.sockets:
            each.close()
        loop.call_soon_threadsafe(running[0].cancel)
        thread.join(LIMIT_S)
        assert not thread.is_alive()
        loop.close()
        behind.shutdown()
        behind.server_close()
        serving.join(LIMIT_S)


def made_folder(path: Path) -> ServerFolder:
    from server.service.setup import Wanted, made

    folder = ServerFolder(path)
    made(folder, Wanted(), datetime.now(timezone.utc))
    return folder
