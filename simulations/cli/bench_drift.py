"""``fleet bench drift``: false alarms and delay of drift detectors on real streams."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fleet.errors import InputError
from server.control.cli.render import Format, FormatOption, emit, progress_console

__all__ = ["EPILOG", "HELP", "drift"]

HELP = (
    "False alarms and delay of drift detectors on streams of real windows.\n\n"
    "Held-out people's windows, drawn into long streams that stay as they are or change at a time."
)
EPILOG = """Examples:

fleet bench drift --out docs/images/drift-frontier.png

fleet bench drift --data hapt --seeds 1 --devices 4
"""


def drift(
    data: Annotated[str, typer.Option(help="Data sets, by comma.")] = "hapt,motionsense",
    seeds: Annotated[int, typer.Option(help="Divisions of people, bases and streams.", min=1)] = 2,
    devices: Annotated[int, typer.Option(help="Held-out people of each, at most.", min=1)] = 8,
    windows: Annotated[int, typer.Option(help="Windows of a stable stream.", min=500)] = 3000,
    out: Annotated[Path | None, typer.Option(help="Picture of the frontier, a PNG.")] = None,
    form: FormatOption = Format.table,
) -> None:
    """Run the bench."""
    import torch

    from simulations.benchmarks.drift import draw_drift, run

    sets = [name for name in dict.fromkeys(data.split(",")) if name]
    if not sets or "all" in sets:
        raise InputError("drift-data", f"--data takes sets by comma, not {data!r}", "Try hapt.")
    torch.set_num_threads(1)
    console = progress_console()

    def tell(name: str, seed: int, device: str) -> None:
        console.print(f"{name}, seed {seed}: {device}", highlight=False)

    record = run(sets, seeds=seeds, devices=devices, windows=windows, on_world=tell)
    if out is not None:
        draw_drift(record, out)
    emit(record, form, lambda console: _draw(console, record))


def _draw(console: Console, record: dict[str, Any]) -> None:
    console.print(f"$ {record['command']}", highlight=False, soft_wrap=True)
    made = ", ".join(f"{name} {v}" for name, v in record["versions"].items())
    console.print(f"{record['machine']}; {made}", highlight=False, soft_wrap=True)
    names = list(dict.fromkeys(row["data"] for row in record["rows"]))
    for name in names if len(names) > 2 else names[-1:]:
        rows = [row for row in record["rows"] if row["data"] == name]
        changes = list(rows[0]["delays"])
        table = Table("detector", title=f"{name}: false alarms per 10,000 windows, median delay")
        for title in ("parameter", "steady", "habits", "delay", "missed", *changes):
            table.add_column(title, justify="right")
        for row in rows:
            delays = [row["delay"], *row["delays"].values()]
            shown = ["never" if each is None else f"{each:,.0f}" for each in delays]
            rates = [f"{row[key]:.1f}" for key in ("false_alarms", "false_alarms_habits")]
            missed = f"{row['missed']:.0%}"
            parameter = f"{row['parameter']:g}"
            table.add_row(row["detector"], parameter, *rates, shown[0], missed, *shown[1:])
        console.print(table)
