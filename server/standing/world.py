"""What the service needs of the world besides a grid and a registry."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

from flwr.app import Message

from server.messages import weight_on_wire
from server.registry.lease import Holder
from server.signing import Signer
from server.standing.holding import is_gone, this_process

__all__ = ["Say", "World", "say_json"]


class Say(Protocol):
    """Tells what happened: an event's stable name and its values, JSON."""

    def __call__(self, event: str, /, **values: Any) -> None:
        """Tell one event."""


def say_json(event: str, /, **values: Any) -> None:
    """Write an event as a line of JSON to standard output, which Flower keeps as the run's log."""
    line = {"at_s": round(time.time(), 3), "event": event, **values}
    sys.stdout.write(json.dumps(line, sort_keys=False, default=str) + "\n")
    sys.stdout.flush()


def installed_version() -> str:
    """Return the version of the installed package; empty where it runs from a tree."""
    try:
        return version("corefleet")
    except PackageNotFoundError:
        return ""


@dataclass(frozen=True)
class World:
    """Clock, waiting, words and keys of a service.

    Args:
        clock: Seconds since the epoch; the registry's clock.
        now: Monotonic seconds.
        wait: Lets seconds pass.
        say: Tells what happens.
        weigh: Bytes of a message on the wire.
        sign: Signs releases and plans; None leaves them unsigned.
        keyed: Nodes are known by their keys; one without a key is not talked to. A simulation's
            nodes have none.
        pid: Process, for whoever looks for it.
        holder: The same, as it holds the registry.
        gone: Tells whether another holder, not heard of for so many seconds, is known to be dead.
        version: Of this software.
    """

    clock: Callable[[], float] = time.time
    now: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep
    say: Say = say_json
    weigh: Callable[[Message], int] = weight_on_wire
    sign: Signer | None = None
    keyed: bool = True
    pid: int = field(default_factory=os.getpid)
    holder: Holder = field(default_factory=this_process)
    gone: Callable[[Holder, float], bool] = is_gone
    version: str = field(default_factory=installed_version)
