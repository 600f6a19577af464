"""The service inside Flower's ServerApp: opens the registry and serves until the run is ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from flwr.serverapp import Grid

from fleet.federate.signing import read_key
from server.registry import open_registry
from server.signing import Signer
from server.standing.service import Service
from server.standing.world import World

__all__ = ["serve"]


def serve(
    grid: Grid,
    place: str,
    release_key: str = "",
    *,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Serve the fleet of a registry; ends by an error, or with the process.

    Args:
        grid: The run's grid.
        place: Path of a SQLite file, or a URL.
        release_key: Path of the key that signs releases, PEM; empty leaves them unsigned.
        stopping: Tells when to end.

    Raises:
        FleetError: What cannot be gone on with; a supervisor starts the run again.
    """
    world = World(sign=Signer(read_key(Path(release_key))) if release_key else None)
    where = place if "://" in place else Path(place)
    with open_registry(where, clock=time.time) as registry:
        Service(grid, registry, world).run(stopping)
