"""``fleet bench peft``: every method under one protocol, one person held out at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fleet.errors import InputError
from server.control.cli.render import Format, FormatOption, emit
from simulations.cli.display import Display
from simulations.machine import cores

if TYPE_CHECKING:
    from simulations.benchmarks.peft.run import Work

__all__ = ["EPILOG", "HELP", "peft"]

HELP = (
    "Compare every way to adapt a network on one device, under one protocol.\n\n"
    "One person at a time is held out: a base trained on all others is adapted on 80 % of that "
    "person's windows in 50 steps and judged on the rest, by macro-F1. Learning rates are swept "
    "per method on source people. Results are kept cell by cell, so the same command goes on "
    "where it was interrupted, and a larger grid runs only what is new."
)
EPILOG = """Examples:

fleet bench peft --data hapt --methods core,full,head --folds 1 --seeds 1 --dry-run

fleet bench peft --data my.npz --models t-resnet --ranks 2,4 --splits random,chronological

fleet bench peft --grid simulations/experiments/peft.toml --out runs/peft
"""


def peft(
    data: Annotated[str, typer.Option(help="Data sets, by comma: names or .npz files.")] = "",
    models: Annotated[str, typer.Option(help="Backbones, by comma.")] = "small-cnn",
    methods: Annotated[
        str, typer.Option(help="Methods, by comma, or all; NAME+head trains the head as well.")
    ] = "all",
    frames: Annotated[
        str, typer.Option(help="Frames of cores: svd, tt, random, gradient, people.")
    ] = "svd",
    ranks: Annotated[str, typer.Option(help="Ranks, by comma.")] = "2",
    splits: Annotated[str, typer.Option(help="chronological, random.")] = "chronological",
    shifts: Annotated[
        str, typer.Option(help="Shifts of the target's sensor, by comma, e.g. none,remount:35.")
    ] = "none",
    labels: Annotated[str, typer.Option(help="Shares of labelled windows, by comma.")] = "1.0",
    unseen: Annotated[int, typer.Option(help="Classes kept from the base.", min=0)] = 0,
    seeds: Annotated[int, typer.Option(help="Adaptation seeds.", min=1)] = 3,
    folds: Annotated[str, typer.Option(help="Held-out people per set: a number, or all.")] = "2",
    steps: Annotated[int, typer.Option(help="Optimiser steps.", min=1)] = 50,
    batch: Annotated[int, typer.Option(help="Windows per step.", min=1)] = 64,
    grid: Annotated[
        Path | None, typer.Option(help="A TOML file that says what to run, in place of options.")
    ] = None,
    source_windows: Annotated[
        int, typer.Option(help="Most windows that a base is trained on.", min=64)
    ] = 4096,
    epochs: Annotated[int, typer.Option(help="Passes over them.", min=1)] = 6,
    players: Annotated[
        int, typer.Option(help="Source people per set on whom rates are chosen.", min=1)
    ] = 2,
    out: Annotated[Path, typer.Option(help="Folder of results; made or gone on with.")] = Path(
        "runs/bench-peft"
    ),
    workers: Annotated[
        int, typer.Option(help="Processes, of one thread each; 0 for one per core.", min=0)
    ] = 0,
    costs: Annotated[
        bool, typer.Option(help="Measure memory, time and MACs of a step as well.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count cells, time one step of each, and stop.")
    ] = False,
    quiet: Annotated[bool, typer.Option(help="No progress.")] = False,
    form: FormatOption = Format.table,
) -> None:
    """Run the bench."""
    from simulations.benchmarks.peft.grid import grid_of, read_grid
    from simulations.benchmarks.peft.run import plan

    if grid is not None and data:
        raise InputError("two-grids", "--grid and --data both say what to run", "Give one of them.")
    if grid is not None:
        chosen = read_grid(grid)
    else:
        if not data:
            raise InputError(
                "no-data", "the bench needs --data or --grid", "For example --data hapt."
            )
        part = {
            "data": _names(data),
            "models": _names(models),
            "methods": _names(methods),
            "frames": _names(frames),
            "ranks": _numbers("--ranks", ranks),
            "splits": _names(splits),
            "shifts": _names(shifts),
            "labels": _names(labels),
            "unseen": unseen,
            "seeds": seeds,
            "folds": _folds(folds),
            "steps": (steps,),
            "batch": batch,
        }
        content = {
            "parts": [part],
            "source_windows": source_windows,
            "epochs": epochs,
            "players": players,
        }
        chosen = grid_of(content, "the grid of these options")
    work = plan(chosen)
    count = workers or cores()
    if dry_run:
        _dry_run(work, out, count, form)
    else:
        _run(work, out, count, costs, quiet, form)


def _run(work: Work, out: Path, workers: int, costs: bool, quiet: bool, form: Format) -> None:
    from simulations.benchmarks.peft.outcome import finish
    from simulations.benchmarks.peft.run import execute

    with Display(visible=not quiet) as display:
        try:
            cells = execute(work, out, workers, display)
            result = finish(work, cells, out, display, costs=costs)
        except KeyboardInterrupt:
            display.say(f"stopped; the same command goes on from what {out} holds")
            raise
    emit(result, form, lambda console: _table(console, result, out))


def _table(console: Console, result: dict[str, Any], out: Path) -> None:
    table = Table(title="macro-F1, mean over sets and backbones")
    for name in ("setting", "method", "frame", "rank", "macro-F1", "to full", "trained", "bytes"):
        table.add_column(
            name, justify="left" if name in ("setting", "method", "frame") else "right"
        )
    for row in result["summary"]:
        f1, delta = row["macro_f1"], row["delta_to_full"]
        table.add_row(
            row["setting"],
            row["method"],
            row["frame"],
            str(row["rank"] or "–"),
            "–" if f1 is None else f"{f1:.3f}",
            "–" if delta is None else f"{delta:+.3f}",
            f"{row['trained_share']:.2%}",
            f"{row['bytes']:,.0f}",
        )
    console.print(table)
    console.print(f"report: {out / 'REPORT.md'}", highlight=False, soft_wrap=True)


def _dry_run(work: Work, out: Path, workers: int, form: Format) -> None:
    from simulations.benchmarks.peft.run import estimate

    rows = estimate(work, out)
    total = sum(row["seconds"] for row in rows) / workers
    record = {
        "cells": len(work.cells),
        "sweeps": len(work.sweeps),
        "bases": len(work.recipes),
        "left": rows,
        "workers": workers,
        "seconds": total,
    }

    def draw(console: Console) -> None:
        table = Table(title=f"{len(work.cells)} cells, {len(work.sweeps)} rate sweeps")
        for name in ("model", "method", "frame", "cells left", "steps", "ms a step", "minutes"):
            table.add_column(name, justify="right" if name[0] in "cs" or " " in name else "left")
        for row in rows:
            table.add_row(
                row["model"],
                row["method"],
                row["frame"],
                str(row["cells"]),
                f"{row['steps']:,}",
                f"{1e3 * row['step_seconds']:.0f}",
                f"{row['seconds'] / 60:.1f}",
            )
        console.print(table)
        console.print(
            f"about {total / 60:.0f} minutes on {workers} processes, and {len(work.recipes)} bases",
            highlight=False,
        )

    emit(record, form, draw)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _folds(text: str) -> int:
    if text == "all":
        return 0
    try:
        count = int(text)
    except ValueError:
        count = 0
    if count < 1:
        raise InputError("bad-folds", f"--folds takes a number from 1, or all, not {text!r}")
    return count


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in _names(text)]
    except ValueError as error:
        raise InputError("not-a-number", f"{flag} takes whole numbers, not {text!r}") from error
