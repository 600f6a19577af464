"""One federated method of a simulation: its rounds over a grid of virtual devices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.agent.simulated import learner_of, residuals_of
from fleet.adapt.base import Base
from fleet.config import RunConfig
from fleet.federate.served import save_merged
from fleet.har.population import Population
from fleet.har.virtual import virtual_fleet
from fleet.peft.registry import find
from server.app import Surroundings, run_rounds
from server.results import scores_of, summary_of, write_results
from server.rounds import Traffic
from server.store import RunFolder
from simulations.engines import Engine, make_grid
from simulations.machine import cores
from simulations.progress import Progress
from simulations.remembering import RememberingFolder
from simulations.traces.field import Field
from simulations.traces.run import account_for

if TYPE_CHECKING:
    from simulations.cohort.grid import CohortGrid
    from simulations.inprocess import InProcessGrid

__all__ = ["Job", "federated"]

# Simulated seconds between two looks for devices while there are too few: such waits last hours.
LOOK_S = 60.0


@dataclass(frozen=True, eq=False)
class Job:
    """One federated method of a run.

    Args:
        folder: Where it is kept; named after the method.
        engine: How its devices are run.
        config: The run.
        base: What it starts from.
        population: Its people.
        rate: Learning rate.
        field: The devices of the run's trace, if it has one.
        workers: Threads or processes that run devices; 0 for one per core.
        ray_address: Of the cluster of the engine ``ray-cohort``.
    """

    folder: Path
    engine: Engine
    config: RunConfig
    base: Base
    population: Population
    rate: float
    field: Field | None
    workers: int = 0
    ray_address: str = ""

    @property
    def name(self) -> str:
        """The method."""
        return self.folder.name


def federated(job: Job, progress: Progress) -> dict[str, Any]:
    """Run a method's remaining rounds; return its summary."""
    plan = learner_of(job.config.for_flower(), 0).memory_plan(job.name, job.config.batch)
    if plan is not None:
        progress.say(f"{job.name}: {plan}")
    if job.engine is Engine.ray:
        return _in_flower(job, progress)
    values, devices = job.config.for_flower(), len(virtual_fleet(job.config, job.population))
    around = (job.field, job.workers, job.ray_address)
    with closing(make_grid(job.engine, values, devices, job.config.seed, *around)) as grid:
        return _over(grid, job, progress)


def _in_flower(job: Job, progress: Progress) -> dict[str, Any]:
    from simulations.flwr_run import flwr_run

    # What Flower's processes show of their progress is the records that they leave.
    folder = RunFolder(job.folder)
    devices = len(virtual_fleet(job.config, job.population))
    progress.stage(job.name, max(1, job.config.rounds - len(folder.round_numbers())))
    own = {"method": job.name, "learning_rate": job.rate, "out": str(job.folder.parent)}
    config = job.config.model_copy(update=own)
    release = flwr_run(config, job.base, folder, devices, job.workers or cores(), progress)
    before = folder.evaluation(0)
    summary = summary_of(folder, release, job.rate)
    return summary | {"before": scores_of(before) if before else None}


def _over(grid: InProcessGrid | CohortGrid, job: Job, progress: Progress) -> dict[str, Any]:
    config, name, field = job.config, job.name, job.field
    fleet = virtual_fleet(config, job.population)
    folder = _folder(job, progress, None if field is None else grid.clock)
    left = config.rounds - len(folder.round_numbers())
    progress.stage(name, max(1, left * (config.cohort or len(fleet))))
    around = Surroundings(grid.clock, grid.wait, grid.weigh)
    if field is not None:
        around = replace(around, look_s=LOOK_S, traced=True)
        grid.wait(folder.reached_at_s())
    release = run_rounds(
        grid, config, job.base, job.population, find(name), job.rate, folder, around
    )
    save_merged(job.base, release, folder.folder / "merged.safetensors")
    # The run's report has the plots of all methods.
    write_results(folder, config, job.base, release, job.rate, plots=False)
    summary = summary_of(folder, release, job.rate)
    if field is not None:
        summary["field"] = account_for(field, fleet, folder, config.target_f1)
    before = folder.evaluation(0)
    return summary | {"before": scores_of(before) if before else None}


def _folder(job: Job, progress: Progress, clock: Callable[[], float] | None) -> RunFolder:
    """Return a method's folder, which tells the progress what it keeps."""
    scores = {"f1": "", "bytes": ""}

    def on_publish(number: int, traffic: Traffic) -> None:
        scores["bytes"] = f" · {traffic.bytes_up // max(traffic.messages_up, 1):,} B up"

    kind: Callable[..., RunFolder] = RunFolder
    if job.config.compression != "none":
        kind = partial(RememberingFolder, residuals=residuals_of(job.config.for_flower()))
    return kind(
        job.folder,
        on_answer=lambda number, device, of: progress.advance(
            f"round {number}/{job.config.rounds}{scores['f1']}{scores['bytes']}"
        ),
        on_evaluation=lambda number, f1: scores.update(f1=f" · F1 {f1:.3f}"),
        on_publish=on_publish,
        clock=clock,
    )
