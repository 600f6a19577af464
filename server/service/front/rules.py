"""What the front lets through; pure.

A request is never passed on: what is allowed of it is written down anew, so a caller and the
SuperLink cannot read the same bytes differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = [
    "LARGEST_ANNOUNCEMENT",
    "Headers",
    "Refusal",
    "Route",
    "answered_headers",
    "claimed_key",
    "forwarded_headers",
    "route",
]

Headers = Sequence[tuple[bytes, bytes]]

# One word of letters and hyphens: no dots, no second slash, no escape and no query can follow.
FLEET = re.compile(rb"/v1/fleet/[a-z]{1,32}(?:-[a-z]{1,32}){0,4}")
HEALTH = b"/health"
# Only the operator makes and removes nodes; a device with a key never asks for it.
CLOSED = (b"/v1/fleet/register-node", b"/v1/fleet/unregister-node")
# Announces a reply: its metadata, and the ids of its objects. What a SuperLink does for it grows
# with their number, and a reply of ours has six.
ANNOUNCE = b"/v1/fleet/push-messages"
LARGEST_ANNOUNCEMENT = 64 * 2**10
"""Bytes of such a request; about 900 objects."""
KEY = b"flwr-public-key"
# The device's signature and Flower's version among them; the SuperLink reads no other.
FORWARDED = (b"content-type", b"accept", b"accept-encoding")
FORWARDED_PREFIX = b"flwr-"
ANSWERED = (b"content-type", b"content-encoding", b"retry-after")


@dataclass(frozen=True)
class Route:
    """A request that is let through.

    Args:
        method: ``GET`` or ``POST``.
        path: One of the paths that are open.
        length: Bytes of its body.
    """

    method: str
    path: str
    length: int


@dataclass(frozen=True)
class Refusal:
    """A request that is not.

    Args:
        status: HTTP status. Flower tries again after 503 alone; to it 403 means that a run ended.
        reason: Stable name, for the log and the caller.
    """

    status: int
    reason: str


def route(
    method: bytes, target: bytes, version: bytes, headers: Headers, body_bytes: int
) -> Route | Refusal:
    """Decide about a request by its head.

    Args:
        method: As it came.
        target: As it came, not decoded.
        version: Of HTTP, e.g. ``1.1``.
        headers: Names in lower case.
        body_bytes: Most bytes of a body.
    """
    if version != b"1.1":
        return Refusal(505, "http-version")
    wanted = _wanted_method(target)
    if wanted is None:
        return Refusal(404, "path-closed")
    if method != wanted:
        return Refusal(405, "method-closed")
    names = [name for name, _ in headers]
    if b"upgrade" in names:
        return Refusal(400, "upgrade")
    if b"transfer-encoding" in names:
        return Refusal(411, "length-missing")
    length = _length(headers)
    if length is None:
        return Refusal(400, "length-wrong")
    if length > (min(body_bytes, LARGEST_ANNOUNCEMENT) if target == ANNOUNCE else body_bytes):
        return Refusal(413, "body-too-large")
    return Route(method.decode(), target.decode(), length)


def claimed_key(headers: Headers) -> bytes:
    """Return the key that a caller says to sign with; only the SuperLink finds out if it does."""
    return next((value for name, value in headers if name == KEY), b"")


def forwarded_headers(headers: Headers, address: str) -> list[tuple[bytes, bytes]]:
    """Return the headers that go to the SuperLink; the caller's address is ours to tell.

    Args:
        headers: Of the request, names in lower case.
        address: The caller's.
    """
    kept = [(name, value) for name, value in headers if _goes_in(name)]
    return [*kept, (b"x-forwarded-for", address.encode())]


def answered_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers that go back to the caller."""
    return [
        (name.lower(), value)
        for name, value in headers
        if name.lower() in ANSWERED or name.lower().startswith(FORWARDED_PREFIX)
    ]


def _wanted_method(target: bytes) -> bytes | None:
    if target == HEALTH:
        return b"GET"
    if target not in CLOSED and FLEET.fullmatch(target):
        return b"POST"
    return None


def _goes_in(name: bytes) -> bool:
    return name in FORWARDED or name.startswith(FORWARDED_PREFIX)


def _length(headers: Headers) -> int | None:
    # There is one at most: h11 joins equal ones and refuses others.
    value = next((value for name, value in headers if name == b"content-length"), b"0")
    return int(value) if value.isdigit() and len(value) <= 20 else None
