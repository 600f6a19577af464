"""The check of the server: TCP, TLS against the device's root, expiry of the chain, clock skew."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

from clients.agent.doctor.clock import skew_finding
from clients.agent.doctor.finding import Finding, Subject, failed, fine, skipped, warn
from clients.agent.doctor.keys import EXPIRY_NOTICE

__all__ = ["CONNECT_LIMIT_S", "Answer", "ask_server", "check_server"]

CONNECT_LIMIT_S = 8.0
ANSWER_BYTES = 8192
# The path that the TLS front of the server leaves open to anybody.
HEALTH = "/health"
ROOT_FIX = "Compare {path} with the operator's root; the server's chain must end in it."


@dataclass(frozen=True)
class Answer:
    """What a server said.

    Args:
        expires: End of its certificate, UTC; ``None`` when it shows none.
        skew_s: The device's time less the server's; ``None`` when it does not say its time.
        protocol: Version of TLS.
    """

    expires: datetime | None
    skew_s: float | None
    protocol: str


def check_server(subject: Subject, limit_s: float = CONNECT_LIMIT_S) -> Finding:
    """The server answers, and its certificate's chain ends in the device's root."""
    config = subject.config
    address = config.host_and_port() if config is not None else None
    if config is None or address is None:
        return skipped("no server is configured", 'Write server = "HOST:PORT" into device.toml.')
    host, port = address
    root = config.certificate_path(subject.state)
    if not root.is_file():
        return skipped(f"without the root certificate {root} no server is trusted")
    try:
        answer = ask_server(host, port, str(root), limit_s)
    except ssl.SSLCertVerificationError as error:
        return failed(
            f"{host}:{port} is not trusted: {error.verify_message}", ROOT_FIX.format(path=root)
        )
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        return failed(f"{host}:{port} answers, but not in TLS: {reason}", "Check the port.")
    except socket.gaierror as error:
        return failed(f"the name {host} is not known: {error.strerror}", "Check DNS and the name.")
    except OSError as error:
        return failed(
            f"{host}:{port} is not reachable: {error.strerror or error}",
            "Check cable, firewall and that the server runs; the agent goes on serving meanwhile.",
        )
    return _judged(f"{host}:{port}", answer)


def ask_server(host: str, port: int, root: str, limit_s: float) -> Answer:
    """Connect, verify, and ask for the time; all of it within ``limit_s`` seconds.

    Raises:
        OSError: Also as ``ssl.SSLError``, ``socket.gaierror`` and ``TimeoutError``.
    """
    deadline = time.monotonic() + limit_s
    context = ssl.create_default_context(cafile=root)
    with socket.create_connection((host, port), timeout=limit_s) as plain:
        _leave(plain, deadline)
        with context.wrap_socket(plain, server_hostname=host) as secure:
            ends = (secure.getpeercert() or {}).get("notAfter")
            expires = (
                datetime.fromtimestamp(ssl.cert_time_to_seconds(ends), timezone.utc)
                if isinstance(ends, str)
                else None
            )
            return Answer(expires, _skew(secure, host, deadline), secure.version() or "TLS")


def _leave(connection: socket.socket, deadline: float) -> None:
    """Leave the connection what is left of the time."""
    connection.settimeout(max(deadline - time.monotonic(), 0.01))


def _skew(connection: socket.socket, host: str, deadline: float) -> float | None:
    """Ask for its health, read the headers; a server that says no time is no failure."""
    try:
        request = f"GET {HEALTH} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        asked = time.time()
        connection.sendall(request.encode("ascii"))
        content = b""
        while b"\r\n\r\n" not in content and len(content) < ANSWER_BYTES:
            _leave(connection, deadline)
            chunk = connection.recv(4096)
            if not chunk:
                break
            content += chunk
        answered = time.time()
    except (OSError, UnicodeEncodeError):
        return None
    for line in content.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "date":
            return _less((asked + answered) / 2, value.strip())
    return None


def _less(own: float, date: str) -> float | None:
    try:
        # The header drops the fraction of the second: half of one is the fair guess.
        return own - (parsedate_to_datetime(date).timestamp() + 0.5)
    except (ValueError, TypeError):
        return None


def _judged(where: str, answer: Answer) -> Finding:
    skew = skew_finding(answer.skew_s) if answer.skew_s is not None else None
    if skew is not None:
        return skew
    now = datetime.now(timezone.utc)
    until = f", its certificate is valid until {answer.expires:%Y-%m-%d}" if answer.expires else ""
    if answer.expires is not None and answer.expires - now < EXPIRY_NOTICE:
        days = max((answer.expires - now) // timedelta(days=1), 0)
        return warn(
            f"{where}: the server's certificate ends in {days} days",
            "Tell the operator to renew it; devices stop connecting when it ends.",
        )
    shown = f", clocks differ by {answer.skew_s:+.1f} s" if answer.skew_s is not None else ""
    return fine(f"{where} answers in {answer.protocol}{until}{shown}")
