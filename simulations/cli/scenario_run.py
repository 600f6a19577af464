"""``fleet simulate --scenario``: a continual run on the command line."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from fleet.errors import InputError
from server.control.cli.render import Format, emit
from simulations.cli.units import bytes_of
from simulations.engines import Engine

if TYPE_CHECKING:
    from simulations.continual.run import ScenarioRun

__all__ = ["run_scenario"]

# Flags that belong to the run of a scenario and to no configuration.
OWN = {"scenario", "strategies", "option", "methods", "rate", "engine", "resume", "form", "out"}
OWN |= {"workers", "ray_address"}
# What a scenario says instead.
SAID_BY_SCENARIO = (
    *("rounds", "shift", "devices", "windows_per_device", "class_mix", "variation", "methods"),
    *("trace", "target_f1", "evaluate_every", "evaluate_devices", "min_devices", "compression"),
    *("memory_budget", "base"),
)


def run_scenario(context: typer.Context, out: Path | None, *, resume: bool, form: Format) -> bool:
    """Run a scenario where one is asked for, or where the folder to resume holds one.

    Returns:
        Whether there was one; if not, nothing was done.
    """
    kept = resume and out is not None and _holds_scenario(out)
    if not (context.params["scenario"] or kept):
        _refuse_alone(context)
        return False
    _run(context, out, kept=kept, form=form)
    return True


def _holds_scenario(folder: Path) -> bool:
    from simulations.continual.run import is_scenario_run

    return is_scenario_run(folder)


def _run(context: typer.Context, out: Path | None, *, kept: bool, form: Format) -> None:
    from simulations.cli.display import Display
    from simulations.continual.run import simulate

    run = _resumed(context, out) if kept and out is not None else _opened(context, out)
    with Display(visible=form is Format.table) as progress:
        try:
            report = simulate(run, progress)
        except KeyboardInterrupt:
            progress.say(
                f"interrupted; nothing is lost. Go on with: "
                f"fleet simulate --out {run.folder} --resume"
            )
            raise
    emit(report, form, lambda console: _tables(console, report))


def _opened(context: typer.Context, out: Path | None) -> ScenarioRun:
    from fleet.config import RunConfig
    from fleet.continual.scenario import load_scenario
    from simulations.cli.simulate import rates_of
    from simulations.continual.run import ScenarioRun, open_run

    given = [n for n in SAID_BY_SCENARIO if _typed(context, n)]
    if given:
        raise InputError(
            "said-by-scenario",
            f"--{given[0].replace('_', '-')} does not go with --scenario",
            "The scenario says it; copy its file and change it there (docs/scenarios.md).",
        )
    if context.params["resume"]:
        raise InputError("nothing-to-resume", f"{out} holds no run", "Leave out --resume.")
    folder = out or Path("runs") / datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    left_out = {*OWN, *SAID_BY_SCENARIO}
    values = {k: v for k, v in context.params.items() if k not in left_out}
    run = ScenarioRun(
        RunConfig.parse(values | {"out": str(folder), "shift": "none"}),
        load_scenario(context.params["scenario"]),
        tuple(name.strip() for name in context.params["strategies"].split(",") if name.strip()),
        _options(context.params["option"] or []),
        rates_of(context.params["rate"] or []),
        Engine(context.params["engine"]),
        context.params["workers"],
    )
    return open_run(run)


def _resumed(context: typer.Context, out: Path) -> ScenarioRun:
    from simulations.continual.run import resumed

    given = [
        name
        for name in context.params
        if name not in {"resume", "form", "out", "workers"} and _typed(context, name)
    ]
    if given:
        raise InputError(
            "resume-with-flags",
            f"a resumed run keeps its configuration; --{given[0].replace('_', '-')} was given",
            "Leave out all flags but --out, --workers and --resume.",
        )
    return resumed(out, context.params["workers"])


def _refuse_alone(context: typer.Context) -> None:
    given = [n for n in ("strategies", "option") if _typed(context, n)]
    if given:
        raise InputError(
            "no-scenario",
            f"--{given[0]} is about a scenario, and none was given",
            "Name one: fleet scenario list, then --scenario NAME.",
        )


def _typed(context: typer.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _options(given: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError("option", f"--option takes KEY=VALUE, not {text!r}", "")
        key = key.replace("-", "_")
        if key == "replay_bytes":
            found[key] = bytes_of(value)
            continue
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _tables(console: Console, report: dict[str, Any]) -> None:
    table = Table(
        title=f"{report['scenario']} · {report['devices']} devices · "
        f"{report['periods']} periods · {report['data']}"
    )
    table.add_column("strategy", no_wrap=True)
    for name in ("F1", "worst", "last", "back", "lost", "MB up", "cpu s"):
        table.add_column(name, justify="right")
    for name, row in report["strategies"].items():
        lost = [value for value in row["forgetting"].values() if value is not None]
        table.add_row(
            name,
            *(_score(row[k]) for k in ("average_f1", "worst_decile_f1", "last_f1")),
            _score(row["backward_transfer"], signed=True),
            _score(sum(lost) / len(lost) if lost else None, signed=True),
            f"{row['bytes_up'] / 1e6:.2f}",
            f"{row['cpu_seconds']:.0f}",
        )
    console.print(table)
    console.print(
        "F1, worst (a tenth of the devices): mean over time, before each period is learned from;\n"
        "last: of the last period; back: backward transfer; lost: forgetting, mean over classes"
    )
    for name, row in report["strategies"].items():
        if "personal_helped" in row and row["personal_helped"] is not None:
            console.print(
                f"{name}: the private core helped {row['personal_helped']:.0%} of the devices and "
                f"hurt {row['personal_hurt']:.0%}"
            )
    for name, row in report["strategies"].items():
        console.print(f"release {name} · {row['release']}", highlight=False, soft_wrap=True)
    console.print(f"report  {report['folder']}/report.json, plots beside it", soft_wrap=True)


def _score(value: float | None, *, signed: bool = False) -> str:
    if value is None:
        return "n/a"
    return f"{value:+.2f}" if signed else f"{value:.3f}"
