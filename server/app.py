"""Flower's ServerApp: prepares a base, runs the coordinator over the grid, writes the results.

``run_rounds`` is the one way to run a method, whatever grid is behind it: the SuperLink's, Flower's
simulation runtime or the in-process grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fleet.adapt.base import Base, save_base
from fleet.adapt.network import folded_network
from fleet.federate.served import save_merged
from fleet.config import RunConfig
from fleet.errors import MismatchError
from fleet.federate.releases import Release, first_release
from fleet.har.population import Population, population_of
from fleet.peft.method import Method
from fleet.peft.registry import find
from server.coordinator import Rules, Task, begin
from server.prepare import obtain_base
from server.rehearsal import rehearsal_base
from server.results import write_results
from server.rounds import Shell
from server.store import RunFolder

__all__ = ["Time", "app", "rules_of", "run_rounds", "task_of"]

MOMENTUM = 0.9

app = ServerApp()


@dataclass(frozen=True)
class Time:
    """How the shell knows the time and lets it pass.

    Args:
        now: Monotonic seconds.
        wait: Lets seconds pass.
    """

    now: Callable[[], float]
    wait: Callable[[float], None]


REAL_TIME = Time(time.monotonic, time.sleep)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one method with the run config's values and write everything to its ``out`` folder."""
    config = RunConfig.parse(context.run_config)
    out = Path(config.out)
    population = population_of(config)
    method = find(config.method)
    base = obtain_base(config, population)
    stored = out / "base.safetensors"
    save_base(base, stored)
    rate = config.learning_rate or rehearse(config, population, method)
    folder = RunFolder(out / method.name)
    release = run_rounds(grid, config, base, population, method, rate, folder, REAL_TIME)
    save_merged(base, release, folder.folder / "merged.safetensors")
    write_results(folder, config, base, release, rate)


def rehearse(config: RunConfig, population: Population, method: Method) -> float:
    """Return the learning rate that a rehearsal on source people chooses."""
    rehearsal = rehearsal_base(config, population)
    if rehearsal is None:
        return method.default_rate
    return rehearsal.choose(config, method, on_cell=lambda name, rate, score: None)


def run_rounds(
    grid: Grid,
    config: RunConfig,
    base: Base,
    population: Population,
    method: Method,
    rate: float,
    folder: RunFolder,
    clock: Time,
) -> Release:
    """Run a method's remaining rounds over a grid; return the last release.

    Args:
        grid: Any Flower grid; its nodes answer with ``clients.bridge``.
        config: The run.
        base: What it starts from.
        population: Its people; all of them must be online before a round opens.
        method: What is trained.
        rate: Learning rate of local training.
        folder: Where rounds and releases are kept; whole rounds found there are not run again.
        clock: Time of the grid.
    """
    task = task_of(config, base, method, rate)
    start = folder.last_release(base) or first_release(base, method.name, task.layout)
    if start.number >= config.rounds:
        return start
    if start.state.layout != task.layout or start.method != method.name:
        raise MismatchError(
            "other-method", f"{folder.folder} holds releases of another method or rank", ""
        )
    state = begin(
        rules_of(config, population), task, start, round_number=start.number + 1
    )
    shell = Shell(grid, clock.now, clock.wait, folder, method.name, config.evaluate_every)
    fresh = folder.evaluation(start.number) is None
    return shell.run(state, evaluate_start=fresh).release


def rules_of(config: RunConfig, population: Population) -> Rules:
    """Return how the rounds of a run are run."""
    return Rules(
        rounds=config.rounds,
        minimum=config.min_devices or len(population.fleet),
        cohort=config.cohort,
        quorum=config.quorum,
        deadline_s=config.deadline_s,
        wait_s=config.wait_s,
        seed=config.seed,
    )


def task_of(config: RunConfig, base: Base, method: Method, rate: float) -> Task:
    """Return what the devices of a run train."""
    return Task(
        method=method.name,
        rank=base.record.rank,
        layout=method.layout(folded_network(base), base.frames),
        optimiser=method.optimiser,
        learning_rate=rate,
        momentum=MOMENTUM,
        epochs=config.epochs,
        batch=config.batch,
        weight_cap=config.weight_cap,
        seed=config.seed,
    )

