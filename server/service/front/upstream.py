"""The SuperLink behind the front, reached over loopback with TLS of its own."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from server.service.config import Limits
from server.service.front.rules import Headers, Route

__all__ = ["Away", "Busy", "Upstream"]

CONNECT_S = 5.0
# How long a request waits for its turn at the SuperLink.
TURN_S = 10.0
# Shorter than the SuperLink keeps a silent connection, so that none is used while it is closed.
KEEP_S = 2.0


class Away(Exception):
    """The SuperLink does not answer."""


class Busy(Exception):
    """The SuperLink has enough to do."""


class Upstream:
    """The SuperLink.

    Args:
        address: ``https://HOST:PORT``.
        authority: Certificate (PEM) of whoever signed its own.
        limits: What may be asked of it.
    """

    def __init__(self, address: str, authority: Path, limits: Limits) -> None:
        self._address = address
        # A client would add headers, follow redirects and keep cookies of one caller for the next.
        self._transport = httpx.AsyncHTTPTransport(
            verify=ssl.create_default_context(cafile=str(authority)),
            # No proxy of the environment may come between.
            trust_env=False,
            limits=httpx.Limits(
                max_connections=limits.upstream_connections, keepalive_expiry=KEEP_S
            ),
        )
        self._timeout = httpx.Timeout(limits.answer_s, connect=CONNECT_S, pool=TURN_S).as_dict()

    @asynccontextmanager
    async def answer(
        self, route: Route, headers: Headers, body: bytes
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; yield the answer, whose body is still to be read.

        Raises:
            Away: When it does not answer.
            Busy: When no turn came up in ``TURN_S``.
        """
        request = httpx.Request(
            route.method,
            self._address + route.path,
            headers=list(headers),
            content=body if route.method == "POST" else None,
            extensions={"timeout": self._timeout},
        )
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.PoolTimeout as error:
            raise Busy from error
        except httpx.HTTPError as error:
            raise Away(type(error).__name__) from error
        try:
            yield response
        finally:
            await response.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()
