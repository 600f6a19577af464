"""``fleet bench growth``: what a simulation takes as the fleet and the cohort grow."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fleet.errors import InputError
from server.control.cli.render import Format, FormatOption, emit, progress_console

if TYPE_CHECKING:
    from simulations.benchmarks.growth import Point

__all__ = ["EPILOG", "HELP", "growth"]

HELP = (
    "Time and memory of a round as the fleet and the cohort grow.\n\n"
    "Each point is fleet simulate as a command of its own. Close everything else first."
)
EPILOG = """Examples:

fleet bench growth --out runs/growth

fleet bench growth --devices 100,1000 --cohorts 10,100 --rounds 3
"""


def growth(
    devices: Annotated[
        str, typer.Option(help="Enrolled devices, by comma; with the smallest cohort.")
    ] = "100,1000,10000",
    cohorts: Annotated[
        str, typer.Option(help="Devices a round, by comma; with the largest fleet.")
    ] = "50,500,5000",
    windows: Annotated[
        int, typer.Option(help="Windows that a device trains on, at most.", min=1)
    ] = 32,
    rounds: Annotated[int, typer.Option(help="Rounds of each point.", min=2)] = 4,
    out: Annotated[
        Path | None, typer.Option(help="New folder for logs, runs and growth.png.")
    ] = None,
    form: FormatOption = Format.table,
) -> None:
    """Run the bench."""
    from simulations.benchmarks.growth import draw_growth, run

    enrolled, sizes = _numbers("--devices", devices), _numbers("--cohorts", cohorts)
    if max(sizes) > max(enrolled) or min(sizes) > min(enrolled):
        raise InputError(
            "growth-sizes",
            f"cohorts of {cohorts} are drawn from fleets of {devices} devices: "
            "the smallest must fit into all, the largest into the largest",
            "Choose smaller cohorts.",
        )
    console = progress_console()

    def tell(point: Point) -> None:
        text = f"{point.devices:,} devices, {point.cohort:,} a round: "
        text += f"{point.seconds_per_round:.2f} s a round, {point.peak_bytes / 1e6:,.0f} MB"
        console.print(text, highlight=False)

    with tempfile.TemporaryDirectory(prefix="fleet-growth-") as made:
        folder = (out or Path(made)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError("out-in-use", f"{out} is not empty", "Choose another --out.")
        record = run(enrolled, sizes, folder, windows=windows, rounds=rounds, on_point=tell)
        if out is not None:
            draw_growth(record, folder / "growth.png")
    emit(record, form, lambda console: _draw(console, record))


def _numbers(flag: str, text: str) -> list[int]:
    try:
        found = sorted({int(each) for each in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise InputError("growth-sizes", f"{flag} takes numbers by comma, not {text!r}", "")
    return found


def _draw(console: Console, record: dict[str, Any]) -> None:
    console.print(f"$ {record['command']}", highlight=False, soft_wrap=True)
    made = ", ".join(f"{name} {v}" for name, v in record["versions"].items())
    console.print(f"{record['machine']}; {made}", highlight=False, soft_wrap=True)
    table = Table(title="time and memory as a simulation grows")
    for name in ("enrolled", "a round", "s a round", "ms a device", "whole command", "peak"):
        table.add_column(name, justify="right")
    for point in {str(p): p for p in (*record["enrolled"], *record["cohorts"])}.values():
        table.add_row(
            f"{point['devices']:,}",
            f"{point['cohort']:,}",
            f"{point['seconds_per_round']:.2f}",
            f"{point['seconds_per_round'] / point['cohort'] * 1e3:.2f}",
            f"{point['seconds']:.1f} s",
            f"{point['peak_bytes'] / 1e6:,.0f} MB",
        )
    console.print(table)
    console.print(f"memory: {record['memory']}", highlight=False, soft_wrap=True)
