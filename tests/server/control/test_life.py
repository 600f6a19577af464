"""What is told of the service, from its last sign of life and its server's record."""

from __future__ import annotations

from typing import Any

import pytest

from server.control.verbs.life import life_of
from server.registry.observations import Heartbeat

RUNS = {"running": True, "ended": None}
KILLED = {"running": False, "ended": None}
ENDED = {"running": False, "ended": "1970-01-01T00:16:40Z"}


def beat(at_s: float) -> Heartbeat:
    return Heartbeat(alive_at_s=at_s, started_at_s=0.0, pid=1, version="")


@pytest.mark.parametrize(
    ("heard", "run", "told", "step"),
    [
        (None, None, "has not run yet", "fleet server up"),
        (None, RUNS, "has not run yet", "fleet server status"),
        (1035.0, RUNS, "alive", ""),
        (1035.0, None, "alive", ""),
        (900.0, RUNS, "was last heard of 2 min ago", "fleet server status"),
        (900.0, KILLED, "was last heard of 2 min ago", "fleet server up"),
        (1035.0, KILLED, "alive", ""),
        (999.0, ENDED, "ended 39 s ago", "fleet server up"),
        (None, ENDED, "ended 39 s ago", "fleet server up"),
        # Another server has the fleet since, elsewhere.
        (1035.0, ENDED, "alive", ""),
    ],
)
def test_a_service_is_told_by_what_was_heard_and_written_last(
    heard: float | None, run: dict[str, Any] | None, told: str, step: str
) -> None:
    found = life_of(None if heard is None else beat(heard), run, 1039.0)
    assert (found.told, found.next) == (told, step)
    assert found.alive == (told == "alive")
