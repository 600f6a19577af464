"""``fleet simulate --scenario``: strategies over a scenario, and what they came to.

DIR/run.json              configuration, scenario, strategies, versions
DIR/base.safetensors      the network that all strategies start from
DIR/STRATEGY/…            see ``simulations.continual.keeping``
DIR/report.json           what it came to
DIR/plots/*.png
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fleet.config import RunConfig
from fleet.continual.scenario import Scenario
from fleet.errors import InputError, StorageError
from fleet.federate.rule import read_rule
from fleet.files import write_json
from server.events import too_few_for
from server.store import read_json
from simulations.continual.driver import run_periods
from simulations.continual.plots import write_plots
from simulations.continual.report import report_of
from simulations.continual.setting import setting_of
from simulations.continual.strategies import Strategy, strategy, with_options
from simulations.engines import Engine
from simulations.progress import Progress
from simulations.versions import versions

__all__ = ["DEFAULT_STRATEGIES", "ScenarioRun", "is_scenario_run", "open_run", "simulate"]

DEFAULT_STRATEGIES = ("frozen", "core", "core+replay+personal")
KIND = "scenario"


@dataclass(frozen=True, eq=False)
class ScenarioRun:
    """Strategies over one scenario.

    Args:
        config: Data, model, optimiser and seed; ``out`` is the folder.
        scenario: What happens.
        strategies: Names, in order.
        options: Changes to every strategy's options.
        rates: Learning rates given by hand, by strategy.
        engine: ``cohort`` or ``loop``.
        workers: Threads that train, 0 for one per core; no result depends on it.
    """

    config: RunConfig
    scenario: Scenario
    strategies: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    engine: Engine = Engine.cohort
    workers: int = 0

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return Path(self.config.out)

    def record(self) -> dict[str, Any]:
        """Return what ``run.json`` keeps."""
        return {
            "kind": KIND,
            "config": self.config.model_dump(mode="json"),
            "scenario": self.scenario.model_dump(mode="json"),
            "strategies": list(self.strategies),
            "options": dict(self.options),
            "rates": dict(self.rates),
            "engine": self.engine.value,
        }

    def chosen(self) -> list[Strategy]:
        """Return the strategies with their options.

        Raises:
            InputError: ``unknown-strategy``, ``continual-options``.
        """
        found = []
        for name in self.strategies:
            found.append(with_options(strategy(name), self.options))
        return found


def is_scenario_run(folder: Path) -> bool:
    """Tell whether a folder holds a run of a scenario."""
    path = folder / "run.json"
    return path.exists() and read_json(path).get("kind") == KIND


def open_run(run: ScenarioRun) -> ScenarioRun:
    """Check a new run.

    Raises:
        InputError: ``out-in-use``, ``unknown-strategy``, ``continual-options``, ``strategies``,
            ``scenario-engine``, ``scenario-rule``, ``scenario-cohort``, ``rule-above-cohort``.
    """
    if (run.folder / "run.json").exists():
        raise InputError(
            "out-in-use",
            f"{run.folder} holds a run already",
            f"Go on with it: fleet simulate --out {run.folder} --resume; or choose another --out.",
        )
    unknown = sorted(set(run.rates) - set(run.strategies))
    if not run.strategies or unknown or len(set(run.strategies)) < len(run.strategies):
        raise InputError(
            "strategies",
            "strategies are named once each, and rates are of them: "
            f"{', '.join(run.strategies) or 'none'}; rates of {', '.join(unknown) or 'none more'}",
            "For example --strategies core,core+replay --rate core=0.1.",
        )
    if run.engine not in {Engine.cohort, Engine.loop}:
        raise InputError(
            "scenario-engine",
            f"a scenario runs on the engines cohort and loop, not on {run.engine.value}",
            "fleet simulate --engine cohort --scenario …",
        )
    if read_rule(run.config.rule).remembers:
        raise InputError(
            "scenario-rule",
            f"the rule {run.config.rule} remembers earlier rounds, and a scenario's rounds stand "
            "each for itself: bases may change between them",
            "Choose mean, clip, median, trimmed, krum or multikrum.",
        )
    _check_rounds(run)
    return run


def _check_rounds(run: ScenarioRun) -> None:
    """Refuse a run in which no round could ever open."""
    devices, cohort = run.scenario.devices, run.config.cohort
    if not any(one.method and one.shares for one in run.chosen()):
        return
    if cohort > devices:
        raise InputError(
            "scenario-cohort",
            f"a round of {cohort} devices never opens in a scenario of {devices}",
            "Lower --cohort, or leave it out for all that are there.",
        )
    rule, asked = read_rule(run.config.rule), cohort or devices
    if asked < rule.fewest:
        raise too_few_for(rule, asked, "a round")


def resumed(folder: Path, workers: int) -> ScenarioRun:
    """Return the run that a folder holds.

    Raises:
        StorageError: ``run-damaged``.
    """
    kept = read_json(folder / "run.json")
    try:
        return ScenarioRun(
            RunConfig.parse(kept["config"] | {"out": str(folder)}),
            Scenario.model_validate(kept["scenario"]),
            tuple(kept["strategies"]),
            dict(kept["options"]),
            dict(kept["rates"]),
            Engine(kept["engine"]),
            workers,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            "run-damaged",
            f"{folder / 'run.json'} is no whole record of a run ({error})",
            "Start a new run.",
        ) from error


def simulate(run: ScenarioRun, progress: Progress) -> dict[str, Any]:
    """Run every strategy's periods that are left; return the report that ``report.json`` keeps.

    Raises:
        InputError: ``scenario-classes`` and what else the data do not allow.
        StorageError: When what was kept cannot be read, or nothing can be written.
    """
    setting = setting_of(run.config, run.scenario)
    if not (run.folder / "run.json").exists():
        # Claimed only now, so that a mistake in the flags leaves no folder behind.
        write_json(run.folder / "run.json", run.record() | {"versions": versions()})
    scenario, timeline = run.scenario, setting.timeline
    progress.say(
        f"scenario {scenario.name} · {len(timeline)} devices · {scenario.periods} periods of "
        f"{scenario.period_hours:g} h · data {timeline.dataset.name} · {len(timeline.labels)} "
        f"classes, {timeline.classes_at(0)} at the start"
    )
    periods: dict[str, list[dict[str, Any]]] = {}
    spent: dict[str, int] = {}
    for one in run.chosen():
        if not (run.folder / "base.safetensors").exists():
            progress.stage("base", run.config.base_epochs)
        base = setting.base(one, lambda epoch, loss: progress.advance(f"loss {loss:.3f}"))
        rate = run.rates.get(one.name, 0.0)
        continual = setting.continual(one, base, rate=rate, engine=run.engine, workers=run.workers)
        periods[one.name] = run_periods(continual, progress)
        spent[one.name] = continual.devices.trained_size(base, one.method)
    report = report_of(run.record(), setting.timeline, periods, spent)
    write_json(run.folder / "report.json", report)
    write_plots(run.folder, report, periods)
    return report
