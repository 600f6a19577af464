"""``fleet report``: what a sweep, or runs beside each other, came to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fleet.files import write_text
from server.control.cli.render import Format, FormatOption, emit

if TYPE_CHECKING:
    from simulations.sweep.findings import Findings

__all__ = ["app", "table"]

app = typer.Typer(add_completion=False)

LEFT_OUT_FIRST = ("trained", "s", "devices", "bytes down", "rate", "worst 10 %", "bytes up")

HELP = (
    "Report a sweep, or finished runs beside each other.\n\n"
    "The table shows the mean over seeds of every combination of all other keys that differ. "
    "While a sweep is still running, its report shows the cells that are done."
)
EPILOG = """Examples:

fleet report runs/sweep-ranks

fleet report runs/sweep-ranks --html ranks.html --csv ranks.csv --rounds-csv rounds.csv

fleet report runs/hapt runs/hapt-rank-2 --format json
"""


@app.command(help=HELP, epilog=EPILOG)
def report(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Folder of a sweep, or of one or more runs."),
    ],
    html: Annotated[
        Path | None, typer.Option(help="File for a page with plots and tables, all within it.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="File for one line per cell and method.")] = None,
    rounds_csv: Annotated[
        Path | None, typer.Option(help="File for one line per cell, method and round.")
    ] = None,
    form: FormatOption = Format.table,
) -> None:
    """Read results, write the files that are asked for, and print a table."""
    from simulations.sweep import table as numbers
    from simulations.sweep.findings import read_findings

    findings = read_findings(paths)
    written = {"html": html, "csv": csv, "rounds_csv": rounds_csv}
    if html is not None:
        from simulations.sweep.page import page

        write_text(html, page(findings))
    if csv is not None:
        write_text(csv, numbers.cells_csv(findings))
    if rounds_csv is not None:
        write_text(rounds_csv, numbers.rounds_csv(findings))
    files = {name: str(path) for name, path in written.items() if path is not None}

    def draw(console: Console) -> None:
        table(console, findings)
        for name, path in files.items():
            console.print(f"{name.replace('_', ' '):<10} {path}", soft_wrap=True, highlight=False)

    emit(numbers.records(findings) | {"files": files}, form, draw)


def table(console: Console, findings: Findings) -> None:
    """Draw the mean over seeds of each group, and the cells that have no result."""
    from simulations.sweep.findings import label
    from simulations.sweep.table import columns, summary_rows

    done = len({entry.cell for entry in findings.entries})
    heads = [*findings.axes, *columns(findings)]
    lines = [
        [*(label({a: row.values[a]}).partition(" ")[2] for a in findings.axes), *row.cells()]
        for row in summary_rows(findings)
    ]
    kept = _fitting(heads, lines, console.width)
    drawn = Table(title=f"{findings.title}: {done} of {done + len(findings.unfinished)} cells")
    for i in kept:
        drawn.add_column(heads[i], justify="left" if i < len(findings.axes) else "right")
    for line in lines:
        drawn.add_row(*(line[i] for i in kept))
    console.print(drawn)
    for each in findings.unfinished:
        if each.failure is not None:
            where = label({k: each.values[k] for k in (*findings.axes, "seed")})
            error = f"{each.failure.code}: {each.failure.message}"
            console.print(
                f"failed {each.cell} ({where}) {error}",
                soft_wrap=True,
                highlight=False,
                markup=False,
            )
    waiting = sum(each.failure is None for each in findings.unfinished)
    if waiting:
        console.print(f"{waiting} cells are not done yet", highlight=False)


def _fitting(heads: list[str], lines: list[list[str]], width: int) -> list[int]:
    """Return the columns that a terminal has room for; the files hold all of them."""
    widths = [
        3 + max(len(head), *(len(line[i]) for line in lines), 0) for i, head in enumerate(heads)
    ]
    left_out: set[int] = set()
    for name in LEFT_OUT_FIRST:
        if sum(w for i, w in enumerate(widths) if i not in left_out) + 1 > width:
            left_out.add(heads.index(name))
    return [i for i in range(len(heads)) if i not in left_out]
