"""``fleet bench continual``: every strategy over every scenario and data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from server.control.cli.render import Format, FormatOption, emit
from simulations.cli.display import Display
from simulations.machine import cores

if TYPE_CHECKING:
    from simulations.benchmarks.continual.run import Work

__all__ = ["EPILOG", "HELP", "continual"]

HELP = (
    "Compare every way for a fleet to go on learning, over scenarios, data sets and seeds.\n\n"
    "Strategies of one data set and seed share people, windows, labels, changes and base. Learning "
    "rates are chosen per strategy and data set on a seed of its own. Results are kept cell by "
    "cell, so the same command goes on where it was interrupted, and a larger grid runs only what "
    "is new."
)
EPILOG = """Examples:

fleet bench continual --dry-run

fleet bench continual --only scenario=new-classes,data=hapt,seed=0

fleet bench continual --data my.npz --strategies frozen,fedavg-full,core --seeds 0,1
"""
GRID = Path(__file__).parents[1] / "experiments" / "continual.toml"


def continual(
    grid: Annotated[Path, typer.Option(help="A TOML file that says what to run.")] = GRID,
    scenarios: Annotated[
        str, typer.Option(help="In place of the grid's, by comma: names or .toml files.")
    ] = "",
    data: Annotated[
        str, typer.Option(help="In place of the grid's, by comma: names or .npz files.")
    ] = "",
    strategies: Annotated[str, typer.Option(help="In place of the grid's, by comma.")] = "",
    seeds: Annotated[str, typer.Option(help="In place of the grid's, by comma.")] = "",
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="A part of the grid, e.g. scenario=new-classes,data=hapt,strategy=core,seed=0; "
            "a key that comes twice means either."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of results; made or gone on with.")] = Path(
        "runs/bench-continual"
    ),
    workers: Annotated[
        int, typer.Option(help="Processes, of one thread each; 0 for one per core.", min=0)
    ] = 0,
    rates_only: Annotated[
        bool, typer.Option("--rates-only", help="Choose learning rates, and stop.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the folder of every run, not its row alone.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the report's text to this file as well.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count cells, estimate hours, and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
    form: FormatOption = Format.table,
) -> None:
    """Run the bench."""
    from simulations.benchmarks.continual.grid import grid_of, only_of, read_grid
    from simulations.benchmarks.continual.run import plan

    given = {"scenarios": scenarios, "data": data, "strategies": strategies, "seeds": seeds}
    content = read_grid(grid) | {key: _names(text) for key, text in given.items() if text}
    chosen = grid_of(content, str(grid))
    work = plan(chosen, only_of(only or (), chosen))
    count = workers or cores()
    if dry_run:
        _dry_run(work, out, count, form)
        return
    record = _run(work, out, count, quiet, keep=keep, rates_only=rates_only, copy=report)
    emit(record, form, lambda console: _tables(console, record, out))


def _run(
    work: Work,
    out: Path,
    workers: int,
    quiet: bool,
    *,
    keep: bool,
    rates_only: bool,
    copy: Path | None,
) -> dict[str, Any]:
    from simulations.bench import header
    from simulations.benchmarks.continual.report import write_report
    from simulations.benchmarks.continual.run import execute, read_rates

    with Display(visible=not quiet) as display:
        try:
            cells = execute(work, out, workers, display, keep=keep, rates_only=rates_only)
        except KeyboardInterrupt:
            display.say(f"stopped; the same command goes on from what {out} holds")
            raise
    rates = read_rates(work, out)
    record = header() | {"cells": cells, "rates": rates, "tables": []}
    if not rates_only:
        tables = write_report(cells, rates, header(), out, copy)
        record["tables"] = [table.as_record() for table in tables]
    return record


def _tables(console: Console, record: dict[str, Any], out: Path) -> None:
    for found in record["tables"]:
        table = Table(title=f"{found['scenario']} · {found['blocks']} data sets and seeds")
        table.add_column("strategy")
        for name in ("F1 over time", "worst 10 %", "last", "forgotten", "bytes up", "rank"):
            table.add_column(name, justify="right")
        ordered = sorted(found["lines"], key=lambda line: -_mean(line, "average_f1"))
        for line in ordered:
            scores = ("average_f1", "worst_decile_f1", "last_f1", "forgetting")
            share = line["stats"]["bytes_share"]
            table.add_row(
                line["strategy"],
                *(_score(line["stats"][name]) for name in scores),
                "–" if share is None else f"{share['mean']:.2%}",
                str(line["rank"] or "–"),
            )
        console.print(table)
    if record["tables"]:
        console.print(f"report: {out / 'REPORT.md'}", highlight=False, soft_wrap=True)
    else:
        for rate in record["rates"]:
            console.print(f"{rate['data']} {rate['strategy']} {rate['rate']:g}", highlight=False)


def _dry_run(work: Work, out: Path, workers: int, form: Format) -> None:
    from simulations.benchmarks.continual.estimate import estimate

    rows = estimate(work, out)
    total = sum(row["seconds"] for row in rows) / workers
    left = sum(row["cells"] for row in rows if row["strategy"] != "(bases)")
    refused = sum(work.reason(cell) is not None for cell in work.cells)
    record = {
        "cells": len(work.cells),
        "left": left,
        "refused": refused,
        "workers": workers,
        "hours": total / 3600,
        "strategies": rows,
    }

    def draw(console: Console) -> None:
        title = f"{len(work.cells)} cells, {refused} of which cannot be; {left} are left"
        table = Table(title=title)
        table.add_column("strategy")
        for name in ("cells left", "rehearsals", "ms a window", "", "minutes"):
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(
                row["strategy"],
                str(row["cells"]),
                str(row["rehearsals"]),
                f"{row['window_ms']:.2f}" if row["windows"] else "–",
                "measured" if row["measured"] else "a guess",
                f"{row['seconds'] / 60:.1f}",
            )
        console.print(table)
        console.print(f"about {total / 3600:.1f} hours on {workers} processes", highlight=False)

    emit(record, form, draw)


def _mean(line: dict[str, Any], metric: str) -> float:
    found = line["stats"][metric]
    return float("-inf") if found is None else float(found["mean"])


def _score(stat: dict[str, Any] | None) -> str:
    if stat is None:
        return "–"
    return f"{stat['mean']:.3f}" + ("" if stat["sd"] is None else f" ± {stat['sd']:.3f}")


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
