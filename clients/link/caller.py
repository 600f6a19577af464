"""The bridge's end of the link: one question, one answer, never longer than its limit.

An agent that is away is waited for, because whoever supervises it starts it again within seconds,
and a plan may be asked for twice: the agent answers it once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from clients.link.messages import decode_about, decode_answer, encode_request
from clients.link.records import About, Answer, Declined, Request, path_problem
from clients.link.transport import ANSWER, CHANNEL_OPTIONS, PING, TAKEN, address_of
from fleet.errors import FleetError

__all__ = ["AWAY_S", "MOST_LOSSES", "RETRY_S", "ask", "ping"]

# How long an agent may be away before its device answers without it.
AWAY_S = 20.0
# Between two looks for an agent that is away.
RETRY_S = 0.25
# An agent that is lost so often at work on one message is not asked again: it may be the message.
MOST_LOSSES = 3
# Characters of gRPC's own words in a reason.
LARGEST_WORDS = 200

_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True)
class _Lost:
    """A try without an answer, because the agent was not there, or was lost (``taken``)."""

    taken: bool
    words: str


def ask(
    socket: Path,
    request: Request,
    *,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
    away_s: float = AWAY_S,
) -> Answer:
    """Ask the agent, and wait at most ``request.limit_s`` seconds in all.

    Args:
        socket: The agent's.
        request: What to ask.
        now: Monotonic clock, seconds.
        wait: Waits so many seconds.
        away_s: How long to look for an agent that is away.

    Returns:
        The answer; or a :class:`Declined` of the link itself: ``agent-away``; ``agent-busy`` when
        the limit has passed; ``busy`` when the agent has too many messages at work;
        ``agent-malformed``, ``link-format`` for what cannot be understood; ``socket-path``,
        ``link-too-large``, ``link-unsayable`` for what cannot be asked. Nothing that an agent does
        raises.
    """
    if problem := path_problem(socket):
        return Declined("socket-path", problem)
    began = now()
    deadline, gone_since, losses = began + request.limit_s, math.inf, 0
    left, words = request.limit_s, ""
    while left > 0:
        tried_at = now()
        found = _try(socket, replace(request, limit_s=left), request.limit_s)
        if not isinstance(found, _Lost):
            return found
        ended, words = now(), found.words
        losses += found.taken
        if losses >= MOST_LOSSES:
            return _away(f"the agent was lost {losses} times at work on this message")
        gone_since = ended if found.taken else min(gone_since, tried_at)
        if ended - gone_since >= away_s:
            break
        wait(max(0.0, min(RETRY_S, gone_since + away_s - ended, deadline - ended)))
        left = deadline - now()
    return _away(f"no agent answered on {socket} within {now() - began:.1f} s ({words})")


def ping(socket: Path, limit_s: float) -> About | None:
    """Return who answers on a socket within ``limit_s`` seconds; None: nobody that we know."""
    if path_problem(socket):
        return None
    try:
        with grpc.insecure_channel(address_of(socket), options=CHANNEL_OPTIONS) as channel:
            return decode_about(channel.unary_unary(PING)(b"", timeout=limit_s))
    except (grpc.RpcError, FleetError):
        return None


def _try(socket: Path, request: Request, limit_s: float) -> Answer | _Lost:
    """Ask once, on a connection of its own; ``limit_s`` is what the whole question may take."""
    try:
        data = encode_request(request)
    except FleetError as error:
        return Declined.because(error)
    try:
        with grpc.insecure_channel(address_of(socket), options=CHANNEL_OPTIONS) as channel:
            reply = channel.unary_unary(ANSWER)(data, timeout=request.limit_s)
    except grpc.RpcError as error:
        return _failed(error, limit_s)
    try:
        return decode_answer(reply)
    except FleetError as error:
        code = "link-format" if error.code == "link-format" else "agent-malformed"
        return Declined(code, error.message)


def _failed(error: grpc.RpcError, limit_s: float) -> Declined | _Lost:
    code, words = error.code(), str(error.details() or "")[:LARGEST_WORDS]
    taken = any(key == TAKEN for key, _ in error.initial_metadata() or ())
    if code in _GONE:
        return _Lost(taken, words)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        what, kept = "take this message", ""
        if taken:
            what, kept = "answer", "; its answer is kept for the next message of this plan"
        reason = f"not now, because the agent did not {what} within {limit_s:.1f} s{kept}"
        return Declined("agent-busy", reason)
    # gRPC has one status for too many calls and for a message too large.
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" not in words:
        return Declined("busy", f"not now, because the agent has no room for more ({words})")
    return Declined("agent-malformed", f"the agent's reply is none: {code.name}, {words}")


def _away(why: str) -> Declined:
    return Declined("agent-away", f"not now, because {why}")
