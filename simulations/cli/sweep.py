"""``fleet sweep``: a recipe, its axes, and all their combinations in parallel."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fleet.errors import InputError, RoundError
from server.control.cli.render import Format, FormatOption, emit
from simulations.engines import Engine
from simulations.machine import cores

if TYPE_CHECKING:
    from simulations.sweep.cells import Cell
    from simulations.sweep.recipe import Recipe
    from simulations.sweep.store import Kept, Store

__all__ = ["app"]

app = typer.Typer(add_completion=False)

HELP = (
    "Run every combination of some values, in parallel, into one SQLite file.\n\n"
    "A recipe is a TOML file: [run] holds keys of the run configuration, [sweep] lists of values "
    "for some of them. Axes given here, KEY=VALUE,VALUE, replace those of the file or are added. "
    "Short names: lr for learning-rate, bs for batch, methods, ranks and seeds for method, rank "
    "and seed.\n\n"
    "The same command goes on where a sweep was interrupted, and runs only what is new of a larger "
    "one; so does `fleet sweep --out FOLDER` alone. Results do not depend on --jobs."
)
EPILOG = """Examples:

fleet sweep recipe.toml --dry-run

fleet sweep recipe.toml rank=1,2,4 lr=0.03,0.1 seed=0,1,2 --out runs/ranks

fleet sweep data=synthetic rounds=2 base-epochs=2 lr=0.1 rank=1,2

fleet sweep recipe.toml method='["core", "core,head"]'

fleet sweep --out runs/ranks --retry-failed
"""


@app.command(help=HELP, epilog=EPILOG)
def sweep(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE.toml] [KEY=VALUE,...]...", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of results; made or gone on with. Default: runs/sweep-RECIPE."),
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Processes, of one thread each; 0 for one per core.", min=0)
    ] = 0,
    engine: Annotated[
        Engine,
        typer.Option(
            metavar="[cohort|loop]",
            help="cohort: many devices trained as one computation, where method and model allow; "
            "loop: one device at a time, without a trace. No other engine runs in a sweep.",
        ),
    ] = Engine.cohort,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run cells that failed before once more.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells and what is known of them, and stop.")
    ] = False,
    form: FormatOption = Format.table,
) -> None:
    """Run a sweep."""
    recipe = _recipe(words or [])
    folder = _folder(recipe, out)
    cells = None if recipe is None else _cells(recipe, engine)
    count = jobs or cores()
    if dry_run:
        _dry_run(folder, cells, count, form)
    else:
        again = f"fleet sweep --out {shlex.quote(str(folder))}"
        again += f" --jobs {jobs}" if jobs else ""
        _run(folder, recipe, cells, count, retry_failed, again, form)


def _recipe(words: Sequence[str]) -> Recipe | None:
    from simulations.sweep.recipe import Recipe, check, read_recipe, with_axes

    files = [word for word in words if "=" not in word]
    if len(files) > 1 or (files and words[0] != files[0]):
        raise InputError(
            "usage", f"one recipe comes first, then KEY=VALUE,…; not {' '.join(words)}", ""
        )
    if not words:
        return None
    blank = Recipe("the command line", "sweep", {}, {})
    recipe = with_axes(read_recipe(Path(files[0])) if files else blank, words[len(files) :])
    check(recipe)
    return recipe


def _folder(recipe: Recipe | None, out: Path | None) -> Path:
    if out is not None:
        return out
    if recipe is None:
        raise InputError(
            "no-recipe",
            "a sweep needs a recipe or axes to begin, or --out to go on",
            "For example: fleet sweep data=synthetic rank=1,2,4 seed=0,1",
        )
    stem = Path(recipe.where).stem if recipe.where.endswith(".toml") else ""
    return Path("runs") / "-".join(filter(None, ("sweep", stem.removeprefix("sweep-"))))


def _cells(recipe: Recipe, engine: Engine) -> list[Cell]:
    from simulations.sweep.cells import cells_of, fingerprints

    return cells_of(recipe, engine, fingerprints())


def _run(
    folder: Path,
    recipe: Recipe | None,
    cells: list[Cell] | None,
    jobs: int,
    retry_failed: bool,
    again: str,
    form: Format,
) -> None:
    from simulations.cli.display import Display
    from simulations.cli.report import table
    from simulations.sweep.findings import read_findings
    from simulations.sweep.run import alone, execute
    from simulations.sweep.table import records

    if recipe is None:
        _existing(folder)
    with alone(folder), Display(visible=form is Format.table) as display:
        store, wanted = _queued(folder, recipe, cells)
        if retry_failed:
            store.requeue("failed", wanted)
        try:
            kept = execute(store, folder, wanted, jobs, display)
        except KeyboardInterrupt:
            display.say(f"interrupted; nothing is lost. Go on with: {again}")
            raise
    failed = [each for each in kept if each.failure is not None]
    findings = read_findings([folder])
    if not failed or form is Format.table:
        emit(records(findings), form, lambda console: _draw(console, folder, findings, table))
    if failed:
        raise RoundError(
            "cells-failed",
            f"{len(failed)} of {len(kept)} cells failed; what the others came to is kept",
            f"See why: fleet report {folder}. Run them again: {again} --retry-failed",
        )


def _draw(console: Console, folder: Path, findings: Any, table: Any) -> None:
    table(console, findings)
    page = folder / "report.html"
    console.print(f"next    fleet report {folder} --html {page}", soft_wrap=True, highlight=False)


def _queued(
    folder: Path, recipe: Recipe | None, cells: list[Cell] | None
) -> tuple[Store, list[Cell]]:
    """Open the store and return it with the cells that are wanted: the recipe's, or all."""
    from simulations.sweep.store import Store

    store = Store(folder, writable=True)
    if recipe is None or cells is None:
        return store, [kept.cell for kept in store.kept()]
    store.add(cells, recipe.title, recipe.axes)
    return store, cells


def _existing(folder: Path) -> list[Kept]:
    """Return what a folder holds; refuse one without a sweep before anything is written."""
    from simulations.sweep.store import Store

    return Store(folder, writable=False).kept()


def _dry_run(folder: Path, cells: list[Cell] | None, jobs: int, form: Format) -> None:
    from simulations.sweep.store import FILE

    here = _existing(folder) if cells is None or (folder / FILE).is_file() else []
    known = {kept.cell.id: kept for kept in here}
    wanted = [kept.cell for kept in here] if cells is None else cells
    states = {cell.id: known[cell.id].state if cell.id in known else "new" for cell in wanted}
    took = [kept.seconds for kept in here if kept.seconds is not None]
    left = sum(state not in ("done", "failed") for state in states.values())
    seconds = left * sum(took) / len(took) / jobs if took else None
    record = {
        "folder": str(folder),
        "jobs": jobs,
        "left": left,
        # Only cells of this sweep tell how long one takes on this machine.
        "seconds": seconds,
        "bases": len({cell.base_key for cell in wanted if cell.base_key}),
        "cells": [
            {"cell": cell.id, "state": states[cell.id], "values": cell.values()} for cell in wanted
        ],
    }
    emit(record, form, lambda console: _dry_table(console, record))


def _dry_table(console: Console, record: dict[str, Any]) -> None:
    values = [cell["values"] for cell in record["cells"]]
    keys = [key for key in values[0] if len({v[key] for v in values}) > 1] if values else []
    table = Table(title=f"{len(values)} cells, {record['bases']} shared bases")
    for name in ("cell", "state", *keys):
        table.add_column(name)
    for cell in record["cells"]:
        table.add_row(cell["cell"], cell["state"], *(str(cell["values"][key]) for key in keys))
    console.print(table)
    seconds = record["seconds"]
    known = "no cell is done yet, so nobody knows how long one takes"
    if seconds is not None:
        known = f"about {seconds / 60:.1f} minutes, by the cells that are done"
    console.print(f"{record['left']} left on {record['jobs']} processes; {known}", highlight=False)
