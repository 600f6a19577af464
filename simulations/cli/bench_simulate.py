"""``fleet bench simulate``: one federated workload through several simulators."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.errors import InputError
from server.control.cli.render import Format, FormatOption, emit, progress_console

if TYPE_CHECKING:
    from simulations.benchmarks.simulate.measure import OneRun
    from simulations.benchmarks.simulate.sides import Side, Surroundings
    from simulations.benchmarks.simulate.workload import Recipe

__all__ = ["EPILOG", "HELP", "simulate"]

HELP = (
    "Run one federated workload through several simulators, in turn.\n\n"
    "Ours beside a hand-written PyTorch loop, Flower on Ray and pfl-research: the same base, "
    "windows, cohorts, steps and evaluations, each side a command of its own. Reports the whole "
    "command and the steady state of a round, the peak memory of all its processes, and macro-F1 "
    "before and after. Close everything else on the machine first."
)
EPILOG = """Examples:

fleet bench simulate --dry-run

fleet bench simulate --runs 3 --pfl-python ~/pfl/bin/python

fleet bench simulate --sides cohort,loop-full --devices 1000

fleet bench simulate --data hapt --format json
"""


def simulate(
    runs: Annotated[int, typer.Option(help="Runs of each side.", min=1)] = 3,
    sides: Annotated[
        str,
        typer.Option(
            help="By comma: cohort, loop-full, loop-core, flwr-ray, flwr-ray-default, pfl; "
            "default: all."
        ),
    ] = "",
    data: Annotated[
        str, typer.Option(help="synthetic, hapt, or the name or path of another data set.")
    ] = "synthetic",
    devices: Annotated[
        int | None, typer.Option(help="Devices; default: the recipe's.", min=1)
    ] = None,
    windows: Annotated[
        int | None, typer.Option(help="Windows that a device trains on, at most.", min=1)
    ] = None,
    cohort: Annotated[int | None, typer.Option(help="Devices per round.", min=1)] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds.", min=1)] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe; default: simulations/experiments/reference.toml."),
    ] = None,
    pfl_python: Annotated[
        str | None, typer.Option(help="Interpreter with pfl-research, in its own environment.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for the workload, logs and results; default: none is kept."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands and stop.")
    ] = False,
    form: FormatOption = Format.table,
) -> None:
    """Run the bench."""
    from simulations.benchmarks.simulate.sides import Surroundings, find_sides
    from simulations.benchmarks.simulate.workload import RECIPE, read_recipe

    changes: dict[str, Any] = {
        "devices": devices,
        "windows_per_device": windows,
        "cohort": cohort,
        "rounds": rounds,
        "data": None if data == "synthetic" else data,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    chosen, asked = read_recipe(recipe or RECIPE, given), find_sides(sides)
    around = Surroundings(pfl_python=_expanded(pfl_python))
    if dry_run:
        _dry_run(chosen, asked, around, out, form)
        return
    with _folder(out) as folder:
        _run(chosen, asked, around, runs, folder, form)


def _run(
    recipe: Recipe,
    sides: dict[str, Side],
    around: Surroundings,
    runs: int,
    folder: Path,
    form: Format,
) -> None:
    from simulations.benchmarks.simulate.measure import measure
    from simulations.benchmarks.simulate.report import draw_table, record_of
    from simulations.benchmarks.simulate.workload import prepare

    console = progress_console()
    console.print("preparing the base and the windows that all sides are given", highlight=False)
    work = prepare(recipe, folder, windows=any(each.ready_windows for each in sides.values()))

    def tell(name: str, number: int, one: OneRun | str) -> None:
        if isinstance(one, str):
            text = f"{name}: {one}"
        else:
            round_s, peak = one.said.seconds_per_round, one.seen.peak_bytes / 1e6
            text = f"{name}, run {number}/{runs}: {one.seen.seconds:.1f} s, {round_s:.2f} s a round"
            text += f", {peak:,.0f} MB, F1 {one.said.macro_f1:.3f}"
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    record = record_of(work, measure(sides, work, around, runs, tell), runs)
    emit(record, form, lambda console: draw_table(console, record))


def _dry_run(
    recipe: Recipe, sides: dict[str, Side], around: Surroundings, out: Path | None, form: Format
) -> None:
    from simulations.benchmarks.simulate.work import Work
    from simulations.benchmarks.simulate.workload import cohorts_of

    folder = (out or Path(tempfile.gettempdir()) / "fleet-bench").absolute()
    config = recipe.config.model_copy(update={"base": str(folder / "base.safetensors")})
    work = Work(config, recipe.full_rate, cohorts_of(config), folder, {})
    commands: dict[str, Any] = {}
    for name, side in sides.items():
        with side.command(work, folder / "runs" / f"{name}-1", around) as command:
            set_here = [f"{key}={shlex.quote(value)}" for key, value in command.environment.items()]
            absent = side.absent(around)
            shown = " ".join([*set_here, shlex.join(command.words)])
            shown = shown.replace(os.environ.get("PATH") or "$PATH", "$PATH")
            commands[name] = {"command": shown, "absent": absent or None}
    record = {"work": config.for_flower() | {"full-learning-rate": recipe.full_rate}}
    record |= {"commands": commands}

    def draw(console: Any) -> None:
        for name, each in commands.items():
            note = f"  # absent: {each['absent']}" if each["absent"] else ""
            console.print(f"{name}:{note}", markup=False, highlight=False, soft_wrap=True)
            console.print(f"  {each['command']}", markup=False, highlight=False, soft_wrap=True)

    emit(record, form, draw)


@contextlib.contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    if out is None:
        with tempfile.TemporaryDirectory(prefix="fleet-bench-", ignore_cleanup_errors=True) as made:
            yield Path(made)
        return
    if out.exists() and any(out.iterdir()):
        raise InputError("out-in-use", f"{out} is not empty", "Choose another --out.")
    yield out


def _expanded(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser())
