"""What bridge and agent say to each other, and the most that either may say at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import FleetError
from fleet.federate.wire import LARGEST_BUNDLE_BYTES, Payload

__all__ = [
    "LARGEST_CODE",
    "LARGEST_CONFIG",
    "LARGEST_COUNTS",
    "LARGEST_DETAIL",
    "LARGEST_KEY",
    "LARGEST_MESSAGE_BYTES",
    "LARGEST_METRICS",
    "LARGEST_PATH_BYTES",
    "LARGEST_TEXT",
    "LINK_FORMAT",
    "STOPPING",
    "About",
    "Answer",
    "Declined",
    "Metrics",
    "Request",
    "path_problem",
]

# The two processes may be installed apart, so each message says which format it is in.
LINK_FORMAT = 1
# Code of the error by which an agent lays work aside because its process ends.
STOPPING = "agent-stopping"
# A core state takes kilobytes; the largest base that is sent, and a state beside it, fit too.
LARGEST_MESSAGE_BYTES = LARGEST_BUNDLE_BYTES + 8 * 2**20
# Entries of a config.
LARGEST_CONFIG = 256
# Bytes of one text or of one raw value in a config but a base; a plan is a text.
LARGEST_TEXT = 256 * 2**10
# Bytes of a key, and of a request's kind.
LARGEST_KEY = 128
# Entries of metrics, and integers in one of them: the confusion counts of 256 classes.
LARGEST_METRICS = 64
LARGEST_COUNTS = 2**16
# Characters of a reason to decline; what is longer is cut, so that a reason always arrives.
LARGEST_CODE = 64
LARGEST_DETAIL = 4096
# Linux holds the path of a Unix socket in 108 bytes, the last of them zero.
LARGEST_PATH_BYTES = 107


@dataclass(frozen=True)
class Request:
    """One message of the server, handed to the agent.

    Args:
        kind: ``train``, ``evaluate``, ``query.status``, ``query.release``.
        payload: What the message carries.
        limit_s: Seconds that the caller will wait for the answer.
    """

    kind: str
    payload: Payload
    limit_s: float


@dataclass(frozen=True)
class Metrics:
    """An answer of named figures, e.g. the confusion counts of an evaluation."""

    values: Mapping[str, int | float | list[int]]


@dataclass(frozen=True)
class Declined:
    """Not now, or not this, and why.

    Args:
        code: Stable kebab-case identifier; the server records it.
        detail: One sentence.
    """

    code: str
    detail: str

    @classmethod
    def because(cls, error: FleetError) -> Declined:
        """Decline for a deliberate error's reason."""
        return cls(error.code, error.message)


Answer = Payload | Metrics | Declined


@dataclass(frozen=True)
class About:
    """Who answers on a socket.

    Args:
        device: Name in the fleet.
        pid: Process id of the agent.
        version: Of its installed package.
        doing: What it is busy with, e.g. ``training for round 3``; empty when idle.
        format: Its :data:`LINK_FORMAT`.
    """

    device: str
    pid: int
    version: str
    doing: str
    format: int = LINK_FORMAT


def path_problem(socket: Path) -> str:
    """Say why no socket can be at a path; empty when one can."""
    size = len(bytes(socket.absolute()))
    if size <= LARGEST_PATH_BYTES:
        return ""
    return f"the path of a socket takes at most {LARGEST_PATH_BYTES} bytes; {socket} takes {size}"
