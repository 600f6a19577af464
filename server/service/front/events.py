"""What the front tells: a JSON line per event, boundedly many."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import TextIO

from server.service.front.rates import Rates

__all__ = ["READY", "Events"]

READY = "front.ready"
LINES_PER_S = 20.0
LINES_AT_ONCE = 200.0
# A caller chooses the target's length; the log's lines are ours.
SHOWN = 200


class Events:
    """Writes events; of a flood only as many as a log can take, and then how many it left out.

    Args:
        stream: Where the lines go.
        clock: Monotonic time, seconds.
        now: Wall time with its zone.
    """

    def __init__(
        self, stream: TextIO, clock: Callable[[], float], now: Callable[[], datetime]
    ) -> None:
        self._stream, self._now = stream, now
        self._rates = Rates(LINES_PER_S, LINES_AT_ONCE, clock)
        self._left_out = 0

    def tell(self, event: str, **data: str | int | float) -> None:
        """Write an event.

        Args:
            event: Its stable name.
            data: What belongs to it.
        """
        if not self._rates.take(event):
            self._left_out += 1
            return
        more: dict[str, str | int | float] = {"left_out": self._left_out} if self._left_out else {}
        self._left_out = 0
        shown = {k: v[:SHOWN] if isinstance(v, str) else v for k, v in data.items()}
        record = {"event": event, "at": self._now().isoformat(timespec="milliseconds")}
        try:
            self._stream.write(json.dumps({**record, **shown, **more}) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # whoever reads may go away; the front stays
            return
