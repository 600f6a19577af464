"""What is durable of a device, opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clients.agent.serving.serve import Serving
from clients.agent.store import Store

__all__ = ["Held"]


@dataclass(frozen=True)
class Held:
    """What an agent works on.

    Args:
        state: State directory.
        store: Windows, labels, outbox and journal.
        serving: Base, releases and what is served.
        version: Of the installed corefleet.
    """

    state: Path
    store: Store
    serving: Serving
    version: str
