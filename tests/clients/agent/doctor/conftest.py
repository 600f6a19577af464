from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from clients.agent.config import DeviceConfig
from clients.agent.doctor.finding import Subject
from clients.agent.keys import make_keys
from tests.clients.agent.doctor.authority import Authority, Serve


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start an HTTPS server on loopback whose clock is ``skew_s`` off; return its port."""
    servers: list[HTTPServer] = []

    def start(
        authority: Authority,
        *,
        days: float = 365.0,
        skew_s: float = 0.0,
        post: Callable[[str, Mapping[str, str], bytes], tuple[int, bytes]] | None = None,
    ) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def do_POST(self) -> None:
                assert post is not None
                body = self.rfile.read(int(self.headers["content-length"]))
                status, answer = post(self.path, dict(self.headers.items()), body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(answer)

            def date_time_string(self, timestamp: float | None = None) -> str:
                now = datetime.now(timezone.utc).timestamp()
                return formatdate(now + skew_s, usegmt=True)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        class Server(HTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that trusts nothing hangs up in the handshake

        server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.server_files(tmp_path, days))
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return int(server.server_address[1])

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def subject(tmp_path: Path, authority: Authority) -> Subject:
    """A device with a key and a root certificate, and no server."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    make_keys(state, "kitchen-1")
    (state / "ca.crt").write_bytes(authority.pem())
    return Subject(state, DeviceConfig(name="kitchen-1"), sys.executable)
