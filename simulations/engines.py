"""The engines of a simulation in one process: how the devices of a round are run."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fleet.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from simulations.cohort.fleet import CohortFleet
    from simulations.cohort.grid import CohortGrid
    from simulations.inprocess import InProcessGrid
    from simulations.traces.field import Field

__all__ = ["LARGEST_WORKERS", "Engine", "check_engine", "make_grid", "trace_refused"]

# Each worker holds a chunk's windows and activations, a few megabytes.
LARGEST_WORKERS = 64


class Engine(str, Enum):
    """How devices are run.

    ``cohort`` trains many at once, on all cores. ``loop`` runs one device at a time behind messages
    as on the wire; the updates of both are equal up to rounding, so a run keeps the engine that it
    began with. ``ray-cohort`` is ``cohort`` on the workers of a Ray cluster, bit for bit; ``ray``
    is Flower's own runtime, with the bits of ``loop``.
    """

    cohort = "cohort"
    loop = "loop"
    ray_cohort = "ray-cohort"
    ray = "ray"

    @property
    def timed(self) -> bool:
        """Whether it simulates time, as a trace needs."""
        return self in (Engine.cohort, Engine.ray_cohort)


def make_grid(
    engine: Engine,
    run_config: Mapping[str, bool | int | float | str],
    devices: int,
    seed: int,
    field: Field | None = None,
    workers: int = 0,
    ray_address: str = "",
) -> InProcessGrid | CohortGrid:
    """Return the grid of an engine, before the virtual devices of a run.

    Args:
        engine: Which one.
        run_config: The run's configuration in Flower's spelling.
        devices: Number of virtual devices.
        seed: Root seed that node ids derive from.
        field: When devices are online and how fast they are; of the cohort engines only.
        workers: Threads of the cohort engine, or workers on Ray; 0 for one per core. They change no
            bit of a result.
        ray_address: Of the cluster of ``ray-cohort``, see
            :class:`simulations.cohort.ray_cluster.RayCluster`.

    Returns:
        A grid to be closed.

    Raises:
        InputError: ``trace-engine`` for a field and an engine without time; ``workers`` for too
            many.
        UnavailableError: When there is no such cluster.
        ValueError: For ``ray``, whose grid is made by Flower.
    """
    if field is not None and not engine.timed:
        raise trace_refused(engine)
    if engine is Engine.ray:
        raise ValueError("Flower makes the grid of its own runtime: see simulations.flwr_run")
    if engine.timed:
        from simulations.cohort.grid import CohortGrid

        fleet = _fleet(engine, run_config, workers or None, ray_address)
        return CohortGrid(fleet, devices, run_config=run_config, seed=seed, field=field)
    from clients import bridge
    from simulations.inprocess import InProcessGrid

    return InProcessGrid(bridge.app, devices, run_config=run_config, seed=seed)


def _fleet(
    engine: Engine,
    run_config: Mapping[str, bool | int | float | str],
    workers: int | None,
    ray_address: str,
) -> CohortFleet:
    if engine is Engine.cohort:
        from simulations.cohort.batched import BatchedFleet

        return BatchedFleet(run_config, workers)
    _need_ray(engine)
    from simulations.cohort.ray_fleet import RayFleet

    return RayFleet(run_config, ray_address, workers)


def check_engine(
    engine: Engine, workers: int, ray_address: str, trace: str, compression: str = "none"
) -> None:
    """Refuse what an engine cannot do, before anything is computed for it.

    Args:
        engine: Which one.
        workers: See :func:`make_grid`.
        ray_address: See :func:`make_grid`.
        trace: The run's trace; empty for none.
        compression: How the run's updates are packed.

    Raises:
        InputError: ``trace-engine``, ``compression-engine``, ``workers`` or ``ray-address``.
        UnavailableError: ``extra-missing`` when the engine needs Ray and there is none.
    """
    if trace and not engine.timed:
        raise trace_refused(engine)
    if compression != "none" and (engine in (Engine.ray, Engine.ray_cohort) or trace):
        raise InputError(
            "compression-engine",
            f"what {compression} loses is kept by the devices of one process that answer in order, "
            f"not by {'a trace' if trace else f'the engine {engine.value}'}",
            "Leave out --compression, or use --engine cohort or loop without --trace.",
        )
    if workers and engine is Engine.loop:
        raise InputError(
            "workers",
            f"the engine loop runs one device at a time, but {workers} workers were asked for",
            "Leave out --workers.",
        )
    if not 0 <= workers <= LARGEST_WORKERS:
        raise InputError(
            "workers", f"from 1 to {LARGEST_WORKERS} workers may train, or 0, not {workers}", ""
        )
    if ray_address and engine is not Engine.ray_cohort:
        raise InputError(
            "ray-address",
            f"the engine {engine.value} uses no cluster of a given address",
            "Add --engine ray-cohort.",
        )
    if engine in (Engine.ray, Engine.ray_cohort):
        _need_ray(engine)


def _need_ray(engine: Engine) -> None:
    if find_spec("ray") is None:
        raise UnavailableError(
            "extra-missing",
            f"--engine {engine.value} needs Ray, which is not installed",
            "Install it: pip install 'corefleet[sim]', on Python 3.11 or later.",
        )


def trace_refused(engine: Engine) -> InputError:
    """Return why an engine takes no trace."""
    return InputError(
        "trace-engine",
        f"only the cohort engines simulate time, so a trace needs one, not {engine.value}",
        "Add --engine cohort.",
    )
