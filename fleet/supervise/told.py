"""What the supervisor tells: events with stable names, for people and for scripts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

__all__ = ["Tell", "Told"]


@dataclass(frozen=True)
class Told:
    """An event.

    Args:
        event: Its stable name, e.g. ``process.ended``.
        text: One line for people.
        process: That of whom, e.g. ``supernode``; ``""``: the supervisor itself.
        data: What scripts read beside the text.
    """

    event: str
    text: str
    process: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)

    def record(self, at: datetime) -> dict[str, Any]:
        """Return the event as JSON holds it."""
        own = {"process": self.process} if self.process else {}
        head = {"event": self.event, "at": at.isoformat(timespec="milliseconds")}
        return {**head, **own, **self.data, "text": self.text}

    def line(self, at: datetime) -> str:
        """Return the event as people read it."""
        return f"{at:%H:%M:%S} {self.process or 'run'}: {self.text}"


Tell = Callable[[Told], None]
