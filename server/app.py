"""Flower's ServerApp: prepares a base, runs the coordinator over the grid, writes the results.

``run_rounds`` is the one way to run a method, whatever grid is behind it: the SuperLink's, Flower's
simulation runtime or the in-process grid.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fleet.adapt.base import Base, load_base, save_base
from fleet.adapt.network import folded_network
from fleet.config import RunConfig
from fleet.errors import InputError, MismatchError
from fleet.federate.releases import Release, first_release
from fleet.federate.rule import read_rule
from fleet.federate.served import save_merged
from fleet.federate.signing import read_key
from fleet.har.population import Population, population_of
from fleet.har.virtual import virtual_fleet
from fleet.peft.method import Method
from fleet.peft.registry import find
from server.asking import POLL_S
from server.coordinator import Rules, Task, begin
from server.messages import weight_on_wire
from server.prepare import check_feasible, obtain_base
from server.rehearsal import rehearsal_base
from server.results import serving_line, write_results
from server.rounds import Shell
from server.signing import Signer
from server.store import RunFolder

__all__ = ["Surroundings", "app", "rules_of", "run_rounds", "task_of"]

MOMENTUM = 0.9
# With a trace a round opens when one device of so many is online.
LEAST_SHARE_ONLINE = 10

app = ServerApp()


@dataclass(frozen=True)
class Surroundings:
    """What the shell needs of the world besides a grid.

    Args:
        now: Monotonic seconds.
        wait: Lets seconds pass.
        weigh: Bytes of a message on the wire.
        look_s: Seconds between two looks for devices while there are too few.
        traced: Who is online depends on the simulated time, so a run that is resumed takes each
            step at the moment at which the unbroken one does.
        served: Devices may serve what they are told, so a run that has nothing left to do still
            looks for them.
        sign: Signs what is sent of releases and plans; None leaves them unsigned.
    """

    now: Callable[[], float]
    wait: Callable[[float], None]
    weigh: Callable[[Message], int] = weight_on_wire
    look_s: float = POLL_S
    traced: bool = False
    served: bool = False
    sign: Signer | None = None


REAL = Surroundings(time.monotonic, time.sleep, served=True)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one method with the run config's values and write everything to its ``out`` folder.

    With a ``registry`` the run is the fleet's standing service instead, and does not end.
    """
    config = RunConfig.parse(context.run_config)
    if config.registry:
        from server.standing.start import serve  # a run that ends needs no database

        serve(grid, config.registry, config.release_key)
        return
    if config.trace:
        raise InputError(
            "trace-engine",
            f"a trace is simulated time, and flwr run's devices live in real time: "
            f"trace={config.trace!r}",
            f"fleet simulate --engine cohort --trace {config.trace}",
        )
    out = Path(config.out)
    population = population_of(config)
    check_feasible(config, population)
    method = find(config.method)
    base = obtain_base(config, population)
    _keep_base(base, out / "base.safetensors")
    expected = len(virtual_fleet(config, population))
    print(f"base {base.digest[:12]}; {expected} devices expected", flush=True)
    rate = config.learning_rate or rehearse(config, population, method)
    folder = RunFolder(out / method.name, on_evaluation=_log_score)
    real = (
        replace(REAL, sign=Signer(read_key(Path(config.release_key))))
        if config.release_key
        else REAL
    )
    release = run_rounds(grid, config, base, population, method, rate, folder, real)
    kernels = save_merged(base, release, folder.folder / "merged.safetensors")
    write_results(folder, config, base, release, rate)
    if served := folder.serving(release.number):
        print(serving_line(served, kernels), flush=True)
    print(f"release {release.number}: {release.digest}; results in {out.resolve()}", flush=True)


def _keep_base(base: Base, path: Path) -> None:
    if path.exists() and load_base(path).digest != base.digest:
        raise MismatchError(
            "other-base",
            f"{path} is the base {load_base(path).digest[:12]}… of another run; this one starts "
            f"from {base.digest[:12]}…",
            "Choose another folder with out.",
        )
    save_base(base, path)


def _log_score(number: int, f1: float) -> None:
    # Flower shows a ServerApp's standard output in the run's log.
    print(f"release {number}: pooled macro-F1 {f1:.3f}", flush=True)


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
    surroundings: Surroundings,
) -> Release:
    """Run a method's remaining rounds over a grid; return the last release.

    Args:
        grid: Any Flower grid; its nodes answer with ``clients.bridge``.
        config: The run.
        base: What it starts from.
        population: Its people; all devices must be online before a round opens.
        method: What is trained.
        rate: Learning rate of local training.
        folder: Where rounds and releases are kept; whole rounds found there are not run again.
        surroundings: Surroundings of the grid.
    """
    task = task_of(config, base, method, rate)
    start = folder.last_release(base) or first_release(base, method.name, task.layout)
    if start.state.layout != task.layout or start.method != method.name:
        raise MismatchError(
            "other-method", f"{folder.folder} holds releases of another method or rank", ""
        )
    rules = rules_of(config, population)
    shell = Shell(
        grid,
        surroundings.now,
        surroundings.wait,
        folder,
        method.name,
        config.evaluate_every,
        surroundings.weigh,
        classes=len(base.record.labels),
        evaluate_devices=config.evaluate_devices,
        seed=config.seed,
        look_s=surroundings.look_s,
        sign=surroundings.sign,
    )
    unjudged = folder.evaluation(start.number) is None
    due = start.number % config.evaluate_every == 0 or start.number >= config.rounds
    if start.number and due and unjudged:  # cut off between a round's record and its evaluation
        shell.judge(start, replace(rules, minimum=0) if surroundings.traced else rules)
    if start.number < config.rounds:
        memory = folder.memory(start, rules.rule)
        state = begin(rules, task, start, round_number=start.number + 1, memory=memory)
        first = not start.number and (unjudged or surroundings.traced)
        return shell.run(state, evaluate_start=first).release
    if surroundings.served:  # cut off before the devices were told, or some were away
        shell.tell(start, rules)
    return start


def rules_of(config: RunConfig, population: Population) -> Rules:
    """Return how the rounds of a run are run."""
    devices = len(virtual_fleet(config, population))
    # Of a fleet that comes and goes, all are never there.
    enough = -(-devices // LEAST_SHARE_ONLINE) if config.trace else devices
    return Rules(
        rounds=config.rounds,
        minimum=config.min_devices or enough,
        cohort=config.cohort,
        quorum=config.quorum,
        deadline_s=config.deadline_s,
        wait_s=config.patience_s,
        seed=config.seed,
        rule=read_rule(config.rule),
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
        max_steps=config.max_steps,
        memory_budget=config.memory_budget,
        compression=config.compression,
    )
