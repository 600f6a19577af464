"""The one seam between whoever asks and whoever answers: the same answers here and over the wire.

CLI ──ask(request)──► Verbs ─┬─ LocalVerbs   the registry of this machine
└─ RemoteVerbs  a server's API, over mutual TLS
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from server.control.requests import Request

__all__ = ["Answer", "Event", "Verbs"]


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Args:
        data: JSON; what a command prints under ``data``.
        content: A file's bytes where one was asked for.
    """

    data: Mapping[str, Any]
    content: bytes = b""


@dataclass(frozen=True)
class Event:
    """A row of the audit as it happens; or a sign of life, which has no verb.

    Args:
        seq: Number of the row; ask again from here after a break.
        at: When, ISO 8601, UTC.
        actor: Who.
        verb: What was done, e.g. ``round.release``; empty for a sign of life.
        subject: To what, e.g. ``round 3``.
        detail: What was asked and what came of it.
    """

    seq: int
    at: str
    actor: str = ""
    verb: str = ""
    subject: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


class Verbs(Protocol):
    """All that an operator can do."""

    def ask(self, request: Request) -> Answer:
        """Do one thing, or tell one.

        Raises:
            FleetError: Why not; the same code, sentence and exit code on both sides of a wire.
        """

    def watch(self, after: int | None, limit_s: float) -> Iterator[Event]:
        """Yield what happens, for at most ``limit_s`` seconds, with signs of life in between.

        Args:
            after: Number of the last row that is known; None for what is yet to come.
            limit_s: Seconds.

        Raises:
            FleetError: Why not.
        """

    def __enter__(self) -> Verbs:
        """Return itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of what it holds."""
