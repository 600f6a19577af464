"""``fleet bench``: figures beside a reference, both sides in one run."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from server.control.cli.render import Format, FormatOption, emit

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def group() -> None:
    """Measure Corefleet beside its peers, both sides in one run."""


@app.command(epilog="Example:\n\nfleet bench aggregate --updates 2000 --entries 5000")
def aggregate(
    updates: Annotated[int, typer.Option(help="Updates to add.", min=1)] = 2000,
    entries: Annotated[int, typer.Option(help="Entries of each update.", min=1)] = 1280,
    runs: Annotated[int, typer.Option(help="Timed runs of each side.", min=3)] = 7,
    form: FormatOption = Format.table,
) -> None:
    """Add updates exactly: beside a plain int64 sum and Flower's own aggregation."""
    from simulations.benchmarks.aggregate import run

    _emit(run(updates, entries, runs), form)


@app.command(epilog="Example:\n\nfleet bench wire --entries 512")
def wire(
    entries: Annotated[int, typer.Option(help="Entries of the update.", min=1)] = 512,
    runs: Annotated[int, typer.Option(help="Timed runs of each side.", min=3)] = 7,
    form: FormatOption = Format.table,
) -> None:
    """Encode and decode one update: beside raw bytes and Flower's object tree."""
    from simulations.benchmarks.wire import run

    _emit(run(entries, runs), form)


@app.command(epilog="Example:\n\nfleet bench protocol --devices 1000 --rounds 3")
def protocol(
    devices: Annotated[int, typer.Option(help="Virtual devices.", min=1)] = 1000,
    rounds: Annotated[int, typer.Option(help="Rounds.", min=1)] = 3,
    form: FormatOption = Format.table,
) -> None:
    """Rounds whose training is free: what the protocol alone costs, in time and memory."""
    from simulations.benchmarks.protocol import run

    _emit(run(devices, rounds), form)


def _emit(record: dict[str, Any], form: Format) -> None:
    emit(record, form, lambda console: _table(console, record))


def _table(console: Console, record: dict[str, Any]) -> None:
    console.print(f"$ {record['command']}", highlight=False)
    made = ", ".join(f"{name} {v}" for name, v in record["versions"].items())
    console.print(f"{record['machine']}; {made}", highlight=False, soft_wrap=True)
    work = ", ".join(f"{value:,} {name}" for name, value in record["work"].items())
    table = Table("side", title=work)
    for name in ("median", "lowest", "highest", f"× {record['against']}"):
        table.add_column(name, justify="right")
    for name, side in record["sides"].items():
        times = [_duration(side[key]) for key in ("median", "lowest", "highest")]
        table.add_row(name, *times, f"{side['ratio']:.2f}")
    console.print(table)
    for note in record.get("notes", []):
        console.print(note, highlight=False)


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds * 1e9:.0f} ns"
