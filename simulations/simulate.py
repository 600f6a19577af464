"""The main job: a base, a fleet that adapts it by each method, and what that came to.

    DIR/run.json                 configuration, methods, versions
    DIR/trace.toml               the trace, where there is one
    DIR/base.safetensors         the base that all methods start from
    DIR/rates.json               learning rates and the rehearsal that chose them
    DIR/METHOD/…                 rounds, releases, evaluations, merged.safetensors, metrics.json
    DIR/report.json report.md    what it came to
    DIR/plots/*.png

Everything is written as soon as it is known, each file whole or not at all, so a run that was
interrupted goes on with ``--resume`` and ends in the same digests.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.agent.simulated import learner_of, status_of
from fleet.adapt.base import Base, load_base, save_base
from fleet.config import RunConfig
from fleet.errors import InputError, StorageError
from fleet.files import write_json
from fleet.har.population import Population, population_of
from fleet.har.virtual import virtual_fleet
from fleet.measure.f1 import score_fleet
from fleet.peft.registry import METHODS, find
from fleet.seeds import sample
from server.app import task_of
from server.prepare import check_feasible, obtain_base
from server.rehearsal import Rehearsal, rehearsal_base
from server.results import SCORES
from server.store import RunFolder, read_json
from simulations.engines import Engine, check_engine
from simulations.federated import Job
from simulations.federated import federated as _federated
from simulations.local import adapt_all
from simulations.progress import Progress
from simulations.report import write_report
from simulations.traces.run import field_of, keep_trace
from simulations.versions import versions

__all__ = ["LOCAL", "METHOD_NAMES", "Run", "open_run", "simulate"]

LOCAL = "local"
METHOD_NAMES = (*METHODS, LOCAL)
TYPICAL_TRIES = 3
# Local-only trains what the core method trains.
TRAINS = {LOCAL: "core"}


@dataclass(frozen=True, eq=False)
class Run:
    """One simulation: what to do and where.

    Args:
        config: The configuration; ``out`` is the folder.
        methods: Methods to compare, in order.
        rates: Learning rates given by hand, by method; the others are rehearsed.
        engine: How the devices of federated methods are run.
        workers: Threads or processes that run them, 0 for one per core; no result depends on it.
        ray_address: Of the cluster of ``ray-cohort``; no result depends on it.
    """

    config: RunConfig
    methods: tuple[str, ...]
    rates: Mapping[str, float]
    engine: Engine = Engine.cohort
    workers: int = 0
    ray_address: str = ""

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return Path(self.config.out)

    def record(self) -> dict[str, Any]:
        """Return what ``run.json`` keeps."""
        return {
            "config": self.config.model_dump(mode="json"),
            "methods": list(self.methods),
            "rates": dict(self.rates),
            "engine": self.engine.value,
        }


def open_run(run: Run, *, resume: bool) -> Run:
    """Return the run to do: a new one, or the one that the folder holds.

    Raises:
        InputError: ``unknown-method``, ``target-f1``, ``out-in-use`` (a run is there and ``resume``
            was not asked), ``nothing-to-resume``, or what the engine cannot do.
        UnavailableError: When the engine is not installed.
    """
    unknown = [m for m in (*run.methods, *run.rates) if m not in METHOD_NAMES]
    if unknown or not run.methods:
        raise InputError(
            "unknown-method",
            f"there is no method {', '.join(unknown) or '(none given)'}; "
            f"known: {', '.join(METHOD_NAMES)}",
            "Name them with --methods core,head,full,local.",
        )
    path = run.folder / "run.json"
    if not path.exists():
        if resume:
            raise InputError(
                "nothing-to-resume", f"{run.folder} holds no run", "Leave out --resume."
            )
        return _possible(run)
    if not resume:
        raise InputError(
            "out-in-use",
            f"{run.folder} holds a run already",
            f"Go on with it: fleet simulate --out {run.folder} --resume; or choose another --out.",
        )
    kept = read_json(path)
    try:
        # The folder may have been moved since.
        config = RunConfig.parse(kept["config"] | {"out": str(run.folder)})
        # Runs of before there was a choice have none.
        engine = Engine(kept.get("engine", Engine.loop))
        here = (run.workers, run.ray_address)
        begun = Run(config, tuple(kept["methods"]), dict(kept["rates"]), engine, *here)
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            "run-damaged", f"{path} is no whole record of a run ({error})", "Start a new run."
        ) from error
    return _possible(begun)


def _possible(run: Run) -> Run:
    """Return a run that its engine can do."""
    if run.config.target_f1 and not run.config.trace:
        raise InputError(
            "target-f1",
            "the hours to a macro-F1 are simulated, which needs a trace",
            "Add --trace, for example --trace nightly.",
        )
    trace, compression = run.config.trace, run.config.compression
    check_engine(run.engine, run.workers, run.ray_address, trace, compression)
    return run


def simulate(run: Run, progress: Progress) -> dict[str, Any]:
    """Run the main job and return the report that ``report.json`` keeps."""
    config = run.config
    population = population_of(config)
    check_feasible(config, population)
    field = field_of(config)
    if not (run.folder / "run.json").exists():
        # Claimed only now, so that a mistake in the flags leaves no folder behind.
        keep_trace(config)
        write_json(run.folder / "run.json", run.record() | {"versions": versions()})
    progress.say(_about(config, population))
    if field is not None:
        progress.say(f"trace {config.trace} · {field.trace.about}")
    base = _base(run, population, progress)
    rates = _rates(run, population, progress)
    config = config.model_copy(update={"base": str(run.folder / "base.safetensors")})
    summaries: dict[str, Any] = {}
    for name in run.methods:
        done = run.folder / name / "summary.json"
        if not done.exists():
            started = time.monotonic()
            if name == LOCAL:
                summary = _alone(run, config, base, population, name, rates[name], progress)
            else:
                job = Job(
                    folder=run.folder / name,
                    engine=run.engine,
                    config=config,
                    base=base,
                    population=population,
                    rate=rates[name],
                    field=field,
                    workers=run.workers,
                    ray_address=run.ray_address,
                )
                summary = _federated(job, progress)
            write_json(done, summary | {"seconds": round(time.monotonic() - started, 2)})
        summaries[name] = read_json(done)
        progress.say(_result(name, summaries[name]))
    return write_report(run.folder, run.record(), population, base, summaries)


def _base(run: Run, population: Population, progress: Progress) -> Base:
    path = run.folder / "base.safetensors"
    if not path.exists():
        epochs = 0 if run.config.base else run.config.base_epochs
        progress.stage("base", max(epochs, 1))
        base = obtain_base(
            run.config, population, lambda epoch, loss: progress.advance(f"loss {loss:.3f}")
        )
        save_base(base, path)
    base = load_base(path)
    progress.say(f"base {base.digest[:12]} · {base.record.model.name} · {base.record.trained_on}")
    return base


def _rates(run: Run, population: Population, progress: Progress) -> dict[str, float]:
    path = run.folder / "rates.json"
    if not path.exists():
        write_json(path, _rehearse(run, population, progress))
    return {name: float(rate) for name, rate in read_json(path)["chosen"].items()}


def _rehearse(run: Run, population: Population, progress: Progress) -> dict[str, Any]:
    given = {name: run.config.learning_rate for name in run.methods if run.config.learning_rate}
    chosen = {**given, **run.rates}
    open_names = [name for name in run.methods if name not in chosen]
    cells: list[list[Any]] = []
    if open_names:
        # A climb tries three rates, more when the best is not the middle one.
        tries = TYPICAL_TRIES * len(open_names)
        progress.stage("rehearsal", tries + 1, "a base on some of the source people")
        rehearsal = rehearsal_base(run.config, population)
        progress.advance()
        for name in open_names:
            chosen[name] = _choose(run.config, rehearsal, name, cells, progress)
    return {"chosen": chosen, "rehearsed": cells}


def _choose(
    config: RunConfig,
    rehearsal: Rehearsal | None,
    name: str,
    cells: list[list[Any]],
    progress: Progress,
) -> float:
    method = find(TRAINS.get(name, name))
    if rehearsal is None:
        progress.say(f"too few source people to rehearse; {name} uses {method.default_rate:g}")
        return method.default_rate

    def on_cell(_: str, rate: float, score: float) -> None:
        cells.append([name, rate, None if score != score else round(score, 4)])
        progress.advance(f"{name} at {rate:g}: F1 {score:.3f}")

    return rehearsal.choose(config, method, federated=name != LOCAL, on_cell=on_cell)


def _alone(
    run: Run,
    config: RunConfig,
    base: Base,
    population: Population,
    name: str,
    rate: float,
    progress: Progress,
) -> dict[str, Any]:
    values, devices = config.for_flower(), len(virtual_fleet(config, population))
    told = ((status_of(values, partition), partition) for partition in range(devices))
    able = {status.device: partition for status, partition in told if status.usable}
    # Only those that are evaluated: what the others learn alone, nobody would ever see.
    chosen = sample(able, config.evaluate_devices, config.seed, "evaluation")
    learners = (learner_of(values, able[device]) for device in chosen)
    task = task_of(config, base, find(TRAINS[name]), rate)
    progress.stage(name, len(chosen) * config.rounds)
    before, after = adapt_all(learners, base, task, config.rounds, progress.advance)
    folder = RunFolder(run.folder / name)
    for number, results in ((0, before), (config.rounds, after)):
        folder.keep_evaluation(number, "", results)
    return {
        **_scores(after),
        "before": _scores(before),
        "trained_parameters": task.layout.size,
        "bytes_up": 0,
        "bytes_down": 0,
        "wire_bytes_up": 0,
        "wire_bytes_down": 0,
        "refused": 0,
        "learning_rate": rate,
        "release": None,
    }


def _scores(results: Mapping[str, NDArray[np.int64]]) -> dict[str, float | None]:
    score = score_fleet(list(results.values()))
    values = (score.pooled, score.devices_mean, score.worst_decile)
    return {
        name: None if np.isnan(value) else round(value, 6)
        for name, value in zip(SCORES, values, strict=True)
    }


def _about(config: RunConfig, population: Population) -> str:
    data = population.dataset
    shift = "no shift" if population.shift is None else str(population.shift)
    people = f"{len(population.source)} source people, {len(population.fleet)} fleet people"
    if config.devices:
        people += f" · {config.devices:,} virtual devices"
    return f"data {data.name} · {people} · {len(data.labels)} classes · {shift}"


def _result(name: str, summary: Mapping[str, Any]) -> str:
    score = summary["macro_f1"]
    return f"{name}: macro-F1 {'n/a' if score is None else format(score, '.3f')}"
