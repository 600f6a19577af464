"""One caller's connection: requests are read whole and within limits before anything goes on."""

from __future__ import annotations

import asyncio
import hashlib
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import h11
import httpx

from server.service.config import Limits
from server.service.front.events import Events
from server.service.front.rates import Rates, neighbourhood
from server.service.front.rules import (
    Headers,
    Refusal,
    Route,
    answered_headers,
    claimed_key,
    forwarded_headers,
    route,
)
from server.service.front.upstream import Away, Busy, Upstream

__all__ = ["Connection", "Shared"]

CHUNK_BYTES = 64 * 2**10
# h11 bounds only a head that is not whole yet, so heads are read in pieces.
HEAD_CHUNK_BYTES = 4 * 2**10
RETRY_AFTER_S = b"1"
# A caller that still sends would see a broken pipe instead of its refusal.
LINGER_S = 5.0
BUSY = Refusal(503, "busy")


@dataclass
class Shared:
    """What all connections have in common.

    Args:
        limits: Of each and of all.
        rates: Requests per address.
        volumes: Bytes per device.
        upstream: The SuperLink.
        events: Told of every refusal.
        buffered_bytes: Bytes of the bodies that are held now.
    """

    limits: Limits
    rates: Rates
    volumes: Rates
    upstream: Upstream
    events: Events
    buffered_bytes: int = field(default=0)

    def reserve(self, size: int) -> bool:
        """Reserve room for a body; return whether there is any."""
        if self.buffered_bytes + size > self.limits.buffered_bytes:
            return False
        self.buffered_bytes += size
        return True

    def admit(self, address: str, headers: Headers, size: int) -> Refusal | None:
        """Count a request against its caller's limits; return the refusal where it exceeds one.

        Bytes are counted by address and claimed key together: devices behind one address do not
        use up each other's, and nobody who names another's key elsewhere uses up that device's.
        """
        caller = neighbourhood(address)
        if not self.rates.take(caller):
            return Refusal(503, "rate")
        device = f"{caller} {hashlib.sha256(claimed_key(headers)).hexdigest()}"
        if not self.volumes.take(device, size):
            return Refusal(503, "volume")
        return None if self.reserve(size) else BUSY


class _Gone(Exception):
    """The caller went away, or was too slow."""


class Connection:
    """Serves one connection until its end.

    Args:
        shared: What it has in common with others.
        reader: What the caller sends, decrypted.
        writer: What the caller gets.
        address: The caller's.
    """

    def __init__(
        self, shared: Shared, reader: StreamReader, writer: StreamWriter, address: str
    ) -> None:
        self._shared, self._reader, self._writer = shared, reader, writer
        self._limits, self._address = shared.limits, address
        self._bodiless = False
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.header_bytes)

    async def serve(self) -> None:
        """Answer requests, one after the other; never raises for what a caller does."""
        try:
            while await self._serve_one():
                self._http.start_next_cycle()
        except (_Gone, OSError):
            return
        except h11.RemoteProtocolError as error:
            await self._refuse(Refusal(error.error_status_hint, "http-wrong"))
        finally:
            self._writer.close()

    async def _serve_one(self) -> bool:
        """Serve a request; return whether another may follow."""
        request = await self._head()
        if request is None:
            return False
        # An answer to HEAD has the headers of one with a body and never the body.
        self._bodiless = request.method == b"HEAD"
        decided = route(
            request.method,
            request.target,
            request.http_version,
            list(request.headers),
            self._limits.body_bytes,
        )
        if isinstance(decided, Route):
            headers = list(request.headers)
            decided = self._shared.admit(self._address, headers, decided.length) or decided
        if isinstance(decided, Refusal):
            await self._refuse(decided, request)
            return False
        try:
            body = await self._body()
            headers = forwarded_headers(list(request.headers), self._address)
            async with self._shared.upstream.answer(decided, headers, body) as answer:
                async with asyncio.timeout(self._limits.answer_s):
                    await self._pass_on(answer)
        except Away:
            await self._refuse(Refusal(502, "superlink-away"), request)
        except Busy:
            await self._refuse(BUSY, request)
        except (httpx.HTTPError, TimeoutError) as error:
            # Half an answer has gone out: only the end of the connection can say that it is none.
            self._tell("answer-cut-off", 0, request, error=type(error).__name__)
        finally:
            self._shared.buffered_bytes -= decided.length
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _head(self) -> h11.Request | None:
        """Return the next request's head; ``None``: the caller has left."""
        event = self._http.next_event()
        if event is h11.NEED_DATA:
            # Silence before the first byte is one thing, a head that drips in another.
            idle = self._http.trailing_data[0] == b""
            if idle and not await self._fill(self._limits.idle_s, "idle"):
                return None
            async with self._within(self._limits.header_s, "head-slow"):
                event = await self._next(HEAD_CHUNK_BYTES)
        if isinstance(event, h11.ConnectionClosed):
            return None
        if not isinstance(event, h11.Request):
            raise _Gone
        return event

    async def _body(self) -> bytes:
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        parts = []
        async with self._within(self._limits.body_s, "body-slow"):
            while isinstance(event := await self._next(), h11.Data):
                parts.append(bytes(event.data))
        if not isinstance(event, h11.EndOfMessage):
            raise _Gone
        return b"".join(parts)

    async def _pass_on(self, answer: httpx.Response) -> None:
        headers = answered_headers(answer.headers.raw)
        length = answer.headers.get("content-length")
        if length is not None:
            headers.append((b"content-length", length.encode()))
        await self._send(h11.Response(status_code=answer.status_code, headers=headers))
        async for chunk in answer.aiter_raw(CHUNK_BYTES):
            await self._send_body(chunk)
        await self._send(h11.EndOfMessage())

    async def _next(
        self, size: int = CHUNK_BYTES
    ) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(size))
        return event

    async def _fill(self, limit_s: float, reason: str) -> bool:
        """Wait for more bytes; return whether some came."""
        try:
            async with asyncio.timeout(limit_s):
                data = await self._reader.read(HEAD_CHUNK_BYTES)
        except TimeoutError as error:
            raise _Gone(reason) from error
        self._http.receive_data(data)
        return bool(data)

    def _within(self, limit_s: float, reason: str) -> _Within:
        return _Within(limit_s, lambda: self._tell(reason, 408, None))

    async def _refuse(self, refusal: Refusal, request: h11.Request | None = None) -> None:
        """Answer with a refusal and close, if it can still be answered."""
        self._tell(refusal.reason, refusal.status, request)
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = f"{refusal.reason}\n".encode()
        headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
        headers.append((b"content-length", str(len(body)).encode()))
        if refusal.status == 503:
            headers.append((b"retry-after", RETRY_AFTER_S))
        await self._send(h11.Response(status_code=refusal.status, headers=headers))
        await self._send_body(body)
        await self._send(h11.EndOfMessage())
        if self._http.their_state is h11.SEND_BODY:
            with suppress(h11.RemoteProtocolError):
                async with _Within(LINGER_S, lambda: None):
                    while isinstance(await self._next(), h11.Data):
                        pass

    async def _send_body(self, data: bytes) -> None:
        if not self._bodiless:
            await self._send(h11.Data(data=data))

    async def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if not data:
            return
        self._writer.write(data)
        async with _Within(self._limits.answer_s, lambda: None):
            await self._writer.drain()

    def _tell(self, reason: str, status: int, request: h11.Request | None, **more: str) -> None:
        what = {}
        if request is not None:
            what["method"] = request.method.decode(errors="replace")
            what["target"] = request.target.decode(errors="replace")
        self._shared.events.tell(
            "front.refused", reason=reason, status=status, address=self._address, **what, **more
        )


class _Within:
    """A deadline after which the caller counts as gone."""

    def __init__(self, limit_s: float, late: Callable[[], None]) -> None:
        self._timeout, self._late = asyncio.timeout(limit_s), late

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *failure: object) -> None:
        try:
            await self._timeout.__aexit__(*failure)  # type: ignore[arg-type]
        except TimeoutError as error:
            self._late()
            raise _Gone from error
