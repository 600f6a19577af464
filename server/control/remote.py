"""The verbs of a server somewhere else: its control API, over mutual TLS."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from fleet.errors import FleetError, InputError
from server.control.errors import AccessError, LateError, ToldError
from server.control.messages import decode_answer, decode_event, encode_request, encode_watch
from server.control.requests import Request
from server.control.seam import Answer, Event
from server.control.table import verb_of
from server.control.transport import CHANNEL_OPTIONS, ERROR, largest_request, path_of
from server.service.authority import Pair

__all__ = ["MOST_TRIES", "RETRY_S", "SLACK_S", "RemoteVerbs", "Trust"]

MOST_TRIES = 3
"""A request that was lost is repeated: it changes nothing, or its key lets it be done once."""
RETRY_S = 0.5
SLACK_S = 10.0
"""The server ends a watch in time; one that says nothing so long after has gone."""


@dataclass(frozen=True)
class Trust:
    """Who one is, and whom one trusts.

    Args:
        own: The operator's certificate and key.
        root: Certificate (PEM) of the server's authority.
    """

    own: Pair
    root: bytes


class RemoteVerbs:
    """Asks a control API; see :class:`server.control.seam.Verbs`.

    Args:
        address: ``HOST:PORT``.
        trust: Certificates.
        wait: Lets seconds pass.
    """

    def __init__(
        self, address: str, trust: Trust, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self._address = address
        self._wait = wait
        credentials = grpc.ssl_channel_credentials(trust.root, trust.own.key, trust.own.certificate)
        self._channel = grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)

    def ask(self, request: Request) -> Answer:
        """Do one thing, or tell one."""
        data, limit_s = encode_request(request), verb_of(request).limit_s
        if len(data) > (largest := largest_request(type(request).__name__)):
            raise InputError(
                "request-too-large",
                f"a request has at most {largest} bytes, not {len(data)}",
                "",
            )
        call = self._channel.unary_unary(path_of(type(request).__name__))
        for left in reversed(range(MOST_TRIES)):
            try:
                return decode_answer(call(data, timeout=limit_s))
            except grpc.RpcError as error:
                if not left or not _lost(error):
                    raise self._told(error) from error
            self._wait(RETRY_S)
        raise AssertionError("the last try returns or raises")

    def watch(self, after: int | None, limit_s: float) -> Iterator[Event]:
        """Yield what happens; a connection that is lost is made again from where it was."""
        call = self._channel.unary_stream(path_of("Watch"))
        ends, tries = time.monotonic() + (limit_s or math.inf), MOST_TRIES
        left_s = limit_s
        while True:
            stream = call(encode_watch(after, left_s), timeout=left_s + SLACK_S if left_s else None)
            try:
                for data in stream:
                    event = decode_event(data)
                    after, tries = event.seq, MOST_TRIES
                    yield event
                return
            except grpc.RpcError as error:
                tries -= 1
                if not tries or not _lost(error):
                    raise self._told(error) from error
            finally:
                stream.cancel()
            self._wait(RETRY_S)
            if limit_s and (left_s := ends - time.monotonic()) <= 0:
                return

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> RemoteVerbs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _told(self, error: Any) -> FleetError:
        if (told := _envelope(error)) is not None:
            return ToldError.of(told)
        code, words = error.code(), str(error.details() or "")[:200]
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return LateError(
                "control-late",
                f"{self._address} did not answer in time; what was asked may still be done",
                "Look first, or ask again.",
            )
        if code is grpc.StatusCode.UNAVAILABLE:
            return AccessError(
                "control-away",
                f"{self._address} does not answer, or not to this certificate ({words})",
                "Check address, certificate and root, and whether the server is up.",
            )
        return FleetError("control-refused", f"{self._address} refused: {code.name}, {words}", "")


def _lost(error: Any) -> bool:
    return error.code() is grpc.StatusCode.UNAVAILABLE and _envelope(error) is None


def _envelope(error: Any) -> dict[str, Any] | None:
    for key, value in error.trailing_metadata() or ():
        if key == ERROR:
            try:
                found = json.loads(value)
            except ValueError:
                return None
            return found if isinstance(found, dict) else None
    return None
