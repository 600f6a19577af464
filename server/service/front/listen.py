"""The front's socket: connections are counted before a byte of TLS is spoken."""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio import StreamReader, StreamReaderProtocol, StreamWriter
from collections import Counter
from pathlib import Path

from server.service.front.connection import Connection, Shared
from server.service.front.rates import neighbourhood

__all__ = ["Listener", "bound", "tls_of"]

BACKLOG = 256
# The reader holds this much before it stops reading; bodies are read in chunks anyway.
READ_BYTES = 64 * 2**10
# After a failed accept, e.g. for lack of descriptors, others may be closed meanwhile.
PAUSE_S = 0.1
FAREWELL_S = 2.0


def tls_of(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return the TLS of a server; raises what ``ssl`` raises for files that do not fit."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(certificate, key)
    return context


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises :class:`OSError` when it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server(
        (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=False
    )
    listener.setblocking(False)
    return listener


class Listener:
    """Accepts connections while :meth:`run` runs.

    Args:
        shared: What all connections have in common.
        context: Our TLS.
        listener: What :func:`bound` returned.
    """

    def __init__(self, shared: Shared, context: ssl.SSLContext, listener: socket.socket) -> None:
        self._shared, self._context, self._listener = shared, context, listener
        self._tasks: set[asyncio.Task[None]] = set()
        self._callers: Counter[str] = Counter()

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._tasks)

    async def run(self) -> None:
        """Accept until cancelled; then everything is closed."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    caller, whence = await loop.sock_accept(self._listener)
                except OSError as error:
                    self._shared.events.tell("front.accept-failed", error=str(error))
                    await asyncio.sleep(PAUSE_S)
                    continue
                self._admit(caller, whence[0])
        finally:
            self._listener.close()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=FAREWELL_S)

    def _admit(self, caller: socket.socket, address: str) -> None:
        limits, key = self._shared.limits, neighbourhood(address)
        reason = ""
        if len(self._tasks) >= limits.connections:
            reason = "connections"
        elif self._callers[key] >= limits.connections_per_address:
            reason = "connections-of-address"
        if reason:
            caller.close()
            self._shared.events.tell("front.refused", reason=reason, status=0, address=address)
            return
        self._callers[key] += 1
        task = asyncio.get_running_loop().create_task(self._serve(caller, address))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._forget(done, key))

    def _forget(self, task: asyncio.Task[None], key: str) -> None:
        self._tasks.discard(task)
        self._callers[key] -= 1
        if self._callers[key] <= 0:
            del self._callers[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._shared.events.tell("front.bug", error=repr(error))

    async def _serve(self, caller: socket.socket, address: str) -> None:
        loop, limits = asyncio.get_running_loop(), self._shared.limits
        reader = StreamReader(READ_BYTES, loop)
        protocol = StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                caller,
                ssl=self._context,
                ssl_handshake_timeout=limits.handshake_s,
                ssl_shutdown_timeout=FAREWELL_S,
            )
        except (OSError, asyncio.CancelledError) as error:
            caller.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            self._shared.events.tell("front.no-tls", address=address, error=str(error))
            return
        try:
            writer = StreamWriter(transport, protocol, reader, loop)
            await Connection(self._shared, reader, writer, address).serve()
        except asyncio.CancelledError:
            transport.abort()
            raise
