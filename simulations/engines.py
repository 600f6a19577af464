"""The engines of a simulation in one process: how the devices of a round are run."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulations.cohort.grid import CohortGrid
    from simulations.inprocess import InProcessGrid

__all__ = ["Engine", "make_grid"]


class Engine(str, Enum):
    """How devices are run.

    ``loop`` runs one device at a time behind messages as on the wire. ``cohort`` trains many at
    once; its updates are those of ``loop`` up to the order in which numbers are added, so a run
    keeps the engine that it began with.
    """

    loop = "loop"
    cohort = "cohort"


def make_grid(
    engine: Engine,
    run_config: Mapping[str, bool | int | float | str],
    devices: int,
    seed: int,
) -> InProcessGrid | CohortGrid:
    """Return the grid of an engine, before the virtual devices of a run.

    Args:
        engine: Which one.
        run_config: The run's configuration in Flower's spelling.
        devices: Number of virtual devices.
        seed: Root seed that node ids derive from.
    """
    if engine is Engine.cohort:
        from simulations.cohort.batched import BatchedFleet
        from simulations.cohort.grid import CohortGrid

        fleet = BatchedFleet(run_config)
        return CohortGrid(fleet, devices, run_config=run_config, seed=seed)
    from clients import bridge
    from simulations.inprocess import InProcessGrid

    return InProcessGrid(bridge.app, devices, run_config=run_config, seed=seed)
