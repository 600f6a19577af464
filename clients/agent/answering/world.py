"""What the agent needs of the world: clocks, sensors, and somebody to tell what happened."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from clients.agent.power import read_device
from clients.agent.power.readings import Readings

__all__ = ["Cadence", "Say", "World"]

Say = Callable[..., None]
"""Called as ``say("agent.ready", release=3)``: an event's name and its JSON values."""


def _nobody(event: str, **values: Any) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Cadence:
    """How often a training looks up from its work, and how long the agent waits for it.

    Args:
        checkpoint_s: Seconds between two checkpoints; a killed training repeats at most these.
        look_s: Seconds between two looks at the sensors.
        busy_s: How long a message waits for other work to end before it is told "not now".
        private_s: How often the device looks whether its private core has something to learn.
    """

    checkpoint_s: float = 10.0
    look_s: float = 60.0
    busy_s: float = 5.0
    private_s: float = 30.0


@dataclass(frozen=True)
class World:
    """Everything outside of the state directory.

    Args:
        now: Seconds since the epoch; may jump.
        monotonic: Seconds that never jump.
        local: Local time, for the policy's hours and days.
        read: The device's sensors.
        say: Told what happens.
        cadence: How often and how long.
        stopping: Set when the process is to end; a training keeps a checkpoint and stops.
    """

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    local: Callable[[], datetime] = lambda: datetime.now().astimezone()
    read: Callable[[], Readings] = read_device
    say: Say = _nobody
    cadence: Cadence = Cadence()
    stopping: threading.Event = field(default_factory=threading.Event)
