"""The verbs on the server's own machine: straight at the registry."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from server.control.requests import Request
from server.control.seam import Answer, Event
from server.control.table import verb_of
from server.control.verbs.fleet import Fleet
from server.control.watching import follow

__all__ = ["LocalVerbs"]


class LocalVerbs:
    """Answers from a registry that this process has open; see :class:`server.control.seam.Verbs`.

    Whoever may read the registry's file may do all that an admin may, so no role is asked for.

    Args:
        fleet: What to work on.
        actor: Who asks.
        now: Monotonic seconds.
    """

    def __init__(self, fleet: Fleet, actor: str, now: Callable[[], float] = time.monotonic) -> None:
        self._fleet = fleet
        self._actor = actor
        self._now = now
        self._closed = threading.Event()

    def ask(self, request: Request) -> Answer:
        """Do one thing, or tell one."""
        return verb_of(request).run(self._fleet, self._actor, request)

    def watch(self, after: int | None, limit_s: float) -> Iterator[Event]:
        """Yield what happens."""
        return follow(self._fleet, after, limit_s, now=self._now, wait=self._closed.wait)

    def close(self) -> None:
        """End what watches, and close the registry."""
        self._closed.set()
        self._fleet.registry.close()

    def __enter__(self) -> LocalVerbs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
