"""``fleet scenario``: list, show and plot what may happen to a fleet over months."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.control.cli.render import Format, FormatOption, emit

if TYPE_CHECKING:
    from rich.console import Console

    from fleet.continual.scenario import Scenario
    from fleet.continual.timeline import Timeline

__all__ = ["app"]

app = typer.Typer(
    name="scenario",
    help="List, show and plot scenarios: what happens to a fleet over months.",
    no_args_is_help=True,
    epilog="Start here: fleet scenario list",
)

NameArgument = Annotated[
    str, typer.Argument(help="A name of `fleet scenario list`, or a TOML file.")
]
DataOption = Annotated[
    str, typer.Option("--data", help="Data set whose people live through it; '' finds one.")
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Root of every random choice.")]


@app.command(
    "list",
    epilog="Examples:\n\n"
    "fleet scenario list\n\n"
    "fleet scenario list --format json\n\n"
    "Next: fleet scenario show sensor-moves",
)
def list_(format: FormatOption = Format.table) -> None:
    """List the scenarios that come with Corefleet."""
    from fleet.continual.scenario import load_scenario, shipped

    found = [load_scenario(name) for name in shipped()]
    data = {"scenarios": [one.model_dump(mode="json") for one in found]}
    emit(data, format, lambda console: _draw_list(console, found))


@app.command(
    epilog="Examples:\n\n"
    "fleet scenario show few-labels\n\n"
    "fleet scenario show mine.toml --data motionsense --format json\n\n"
    "Next: fleet scenario plot few-labels --out few-labels.png",
)
def show(
    name: NameArgument,
    data: DataOption = "",
    seed: SeedOption = 0,
    format: FormatOption = Format.table,
) -> None:
    """Check a scenario and show what happens when, and to whom."""
    timeline = _timeline(name, data, seed)
    scenario = timeline.scenario
    found = {
        **scenario.model_dump(mode="json"),
        "data": timeline.dataset.name,
        "seed": seed,
        "labels": list(timeline.labels),
        "classes": [timeline.classes_at(period) for period in range(scenario.periods)],
        "changes": [
            {"period": one.period, "text": one.text, "devices": list(one.devices)}
            for one in timeline.changes()
        ],
    }
    emit(found, format, lambda console: _draw(console, timeline))


@app.command(
    epilog="Examples:\n\n"
    "fleet scenario plot sensor-moves --out sensor-moves.png\n\n"
    "fleet scenario plot mine.toml --data motionsense --seed 3 --out mine.png\n\n"
    "Next: docs/scenarios.md tells how to read it.",
)
def plot(
    name: NameArgument,
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")],
    data: DataOption = "",
    seed: SeedOption = 0,
    format: FormatOption = Format.table,
) -> None:
    """Draw a scenario: devices by periods, with shifts, presence, classes and labels."""
    from simulations.scenario_plot import plot_scenario

    timeline = _timeline(name, data, seed)
    plot_scenario(timeline, out)
    written = {"name": timeline.scenario.name, "data": timeline.dataset.name, "written": str(out)}
    emit(
        written,
        format,
        lambda console: console.print(f"Wrote {out}", soft_wrap=True, highlight=False),
    )


def _timeline(name: str, data: str, seed: int) -> Timeline:
    from fleet.config import RunConfig
    from fleet.continual.scenario import load_scenario
    from fleet.continual.timeline import Timeline
    from fleet.har.population import population_of

    scenario = load_scenario(name)
    config = RunConfig.parse(
        {"data": data, "shift": "none", "seed": seed, "devices": scenario.devices}
    )
    return Timeline(scenario, population_of(config), seed=seed)


def _draw_list(console: Console, found: list[Scenario]) -> None:
    from rich.table import Column, Table

    table = Table(Column("name", no_wrap=True), "devices", "periods", "hours", "what happens")
    for one in found:
        numbers = (one.devices, one.periods, f"{one.period_hours:g}")
        table.add_row(one.name, *(str(number) for number in numbers), one.about)
    console.print(table)


def _draw(console: Console, timeline: Timeline) -> None:
    from rich.markup import escape
    from rich.table import Table

    scenario = timeline.scenario
    console.print(f"[bold]{escape(scenario.name)}[/]: {escape(scenario.about)}", highlight=False)
    for key, value in _facts(scenario).items():
        console.print(f"{key:<10} {value}", highlight=False, soft_wrap=True)
    table = Table("period", "what changes", "devices", title=f"On {timeline.dataset.name}")
    for one in timeline.changes():
        devices = f"{len(one.devices)} of {len(timeline)}"
        table.add_row(str(one.period), escape(one.text), devices)
    console.print(table)


def _facts(scenario: Scenario) -> dict[str, Any]:
    delay = scenario.label_delay
    facts = {
        "devices": f"{scenario.devices}",
        "periods": f"{scenario.periods} of {scenario.period_hours:g} hours",
        "windows": f"{scenario.windows_per_period} per device and period, measured on"
        f" {scenario.test_windows_per_period} others",
        "labels": f"{scenario.label_fraction:.0%} of the windows, {delay} periods late",
        "online": f"{scenario.online:.0%} of the periods",
    }
    if scenario.day is not None:
        day = scenario.day
        facts["online"] += (
            f", {day.hours:g} hours a day from {day.starts_h:g}:00 in zones {day.zones_h:g} h wide"
        )
    return facts
