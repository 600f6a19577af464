"""``fleet bench fleet``: rounds per hour and the server's CPU with real agents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fleet.errors import InputError
from server.control.cli.render import Format, FormatOption, emit, progress_console
from simulations.cli.places import temporary_place

if TYPE_CHECKING:
    from simulations.benchmarks.fleet import Point

__all__ = ["EPILOG", "HELP", "fleet"]

HELP = (
    "Rounds per hour, CPU, bytes and memory of a real server with real device agents.\n\n"
    "Each size is fleet up as a command of its own. Close everything else first."
)
EPILOG = """Examples:

fleet bench fleet --agents 3,6,12 --rounds 8

fleet bench fleet --agents 3 --rounds 4 --format json
"""
FEWEST, MOST = 1, 32


def fleet(
    agents: Annotated[str, typer.Option(help="Device agents, by comma; 1 to 32.")] = "3,6,12",
    rounds: Annotated[
        int, typer.Option(help="Rounds of each; the first and the last are not counted.", min=4)
    ] = 8,
    windows: Annotated[
        int, typer.Option(help="Windows that a device trains on, at most.", min=1)
    ] = 32,
    out: Annotated[Path | None, typer.Option(help="New folder for logs and boxes.")] = None,
    form: FormatOption = Format.table,
) -> None:
    """Run the bench."""
    from simulations.benchmarks.fleet import run

    sizes = _sizes(agents)
    console = progress_console()

    def tell(point: Point) -> None:
        text = f"{point.agents} agents: {point.rounds_per_hour:,.0f} rounds an hour, "
        text += f"{point.server_cpu_seconds['total']:.2f} s of the server's CPU a round"
        console.print(text, highlight=False)

    with _folder(out) as folder:
        record = run(sizes, folder, rounds=rounds, windows=windows, on_point=tell)
    emit(record, form, lambda console: _draw(console, record))


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """Give the folder of logs and boxes; a temporary one stays where the bench fails."""
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise InputError("out-in-use", f"{out} is not empty", "Choose another --out.")
        yield out.absolute()
        return
    with temporary_place("fb-") as made:
        yield made


def _sizes(text: str) -> list[int]:
    try:
        found = sorted({int(each) for each in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < FEWEST or found[-1] > MOST:
        raise InputError(
            "fleet-sizes", f"--agents takes numbers from {FEWEST} to {MOST} by comma, not {text!r}"
        )
    return found


def _draw(console: Console, record: dict[str, Any]) -> None:
    console.print(f"$ {record['command']}", highlight=False, soft_wrap=True)
    made = ", ".join(f"{name} {v}" for name, v in record["versions"].items())
    console.print(f"{record['machine']}; {made}", highlight=False, soft_wrap=True)
    points = record["points"]
    table = Table(title="a round of a real fleet")
    table.add_column("")
    for point in points:
        table.add_column(f"{point['agents']} agents", justify="right")
    for name, cells in _rows(points):
        table.add_row(name, *cells)
    console.print(table)


def _rows(points: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    def spread(point: dict[str, Any], key: str) -> str:
        found = point[key]
        return f"{found['median']:.1f} ({found['lowest']:.1f} to {found['highest']:.1f})"

    rows = [
        ("rounds per hour", [f"{p['rounds_per_hour']:,.0f}" for p in points]),
        ("seconds per round", [spread(p, "seconds_per_round") for p in points]),
        ("of these until its release", [spread(p, "collecting_seconds") for p in points]),
    ]
    for kind in points[0]["server_cpu_seconds"]:
        cells = [f"{p['server_cpu_seconds'][kind]:.2f}" for p in points]
        if any(float(cell) for cell in cells):
            rows.append((f"CPU s per round: {_named(kind)}", cells))
    each = [f"{p['devices_cpu_seconds']:.1f}" for p in points]
    rows.append(("CPU s per round: all devices", each))
    rows += [
        ("bytes up per round", [f"{p['bytes_up']:,.0f}" for p in points]),
        ("bytes down per round", [f"{p['bytes_down']:,.0f}" for p in points]),
        ("peak MB: server", [f"{p['server_peak_bytes']['total'] / 1e6:,.0f}" for p in points]),
        ("peak MB: all devices", [f"{p['devices_peak_bytes'] / 1e6:,.0f}" for p in points]),
        ("load average", [" to ".join(f"{v:.1f}" for v in p["load"]) for p in points]),
    ]
    return rows


def _named(kind: str) -> str:
    return "server" if kind == "total" else kind
