"""``fleet up``: a fleet in a box."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server.control.cli.render import Format, FormatOption, emit, progress_console
from simulations.cli.places import temporary_place

if TYPE_CHECKING:
    from fleet.supervise.told import Told

__all__ = ["app", "drawn"]

app = typer.Typer(add_completion=False)

EPILOG = """Examples:

fleet up --devices 5 --data hapt

fleet up --devices 2 --data synthetic --rounds 2 --format json

fleet up --folder box

Next: fleet device list --folder box/server
"""
SHOWN_ROUNDS = 8


@app.command(epilog=EPILOG)
def up(
    devices: Annotated[int, typer.Option(help="Device agents, 1 to 32.")] = 5,
    data: Annotated[
        str, typer.Option(help="Name or path of a data set; default: HAPT if found, or synthetic.")
    ] = "",
    rounds: Annotated[
        int, typer.Option(min=0, help="Rounds after which it ends; 0: until Ctrl-C.")
    ] = 0,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where all of it lies and stays; default: a temporary folder."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Root of every random choice.")] = 0,
    base: Annotated[
        Path | None, typer.Option(help="A base to start from; default: train one.")
    ] = None,
    base_epochs: Annotated[int, typer.Option(min=1, help="Passes when a base is trained.")] = 12,
    rank: Annotated[int, typer.Option(min=1, help="Columns of each core.")] = 4,
    rate: Annotated[float, typer.Option(min=0.0, help="Learning rate; 0: the method's own.")] = 0.0,
    windows_per_device: Annotated[
        int, typer.Option(min=0, help="Most windows that a device trains on; 0 for all.")
    ] = 0,
    evaluate_every: Annotated[
        int,
        typer.Option(
            min=0, help="Rounds between evaluations; 0: the last with --rounds, else every one."
        ),
    ] = 0,
    deadline_s: Annotated[
        float, typer.Option(min=1.0, help="Seconds from the opening of a round to its close.")
    ] = 600.0,
    control: Annotated[
        str,
        typer.Option(help="HOST:PORT for operators elsewhere; default: a free one of loopback."),
    ] = "",
    form: FormatOption = Format.table,
) -> int:
    """Run a whole fleet on this machine: the real server and real device agents on loopback.

    Each device has a key, samples and labels of its own; rounds run one after the other, every
    release reaches every device. Ctrl-C ends everything.
    """
    from simulations.box.wanted import Box, Wanted

    wanted = Wanted(
        devices=devices,
        data=data,
        rounds=rounds,
        seed=seed,
        base=str(base.expanduser().absolute()) if base else "",
        base_epochs=base_epochs,
        rank=rank,
        rate=rate,
        windows=windows_per_device,
        evaluate_every=evaluate_every,
        deadline_s=deadline_s,
        control=control,
    )
    given = nullcontext(folder.expanduser().absolute()) if folder else None
    with given or temporary_place("fleet-up-") as place:
        seen, stopped = _run(wanted, Box(place), form)
    report = {key: seen[key] for key in ("devices", "rounds", "release")} if seen else {}
    emit(report, form, lambda console: console.print(drawn(seen)))
    return 130 if stopped else 0


def _run(wanted: Any, box: Any, form: Format) -> tuple[dict[str, Any] | None, bool]:
    import torch

    from simulations.box.making import make_box
    from simulations.box.running import run_box
    from simulations.cli.display import Display

    torch.set_num_threads(1)  # networks this small lose time on more
    visible = form is Format.table
    with Display(visible=visible) as progress:
        names = make_box(wanted, box, progress, datetime.now().astimezone())
    console = progress_console()
    if visible:
        where = f"in another terminal: fleet device list --folder {box.server.path}"
        console.print(f"the fleet starts; {where}", highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        live = None
        if visible and console.is_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False, transient=True))
        teller = _Teller(console if visible else None, live)
        return run_box(wanted, box, names, teller.show, teller.tell)


class _Teller:
    """Shows a table that follows on a terminal, lines elsewhere, nothing for scripts."""

    def __init__(self, console: Console | None, live: Live | None) -> None:
        self._console, self._live = console, live
        self._rounds = 0

    def show(self, seen: dict[str, Any]) -> None:
        """Take what was seen."""
        if self._live is not None:
            self._live.update(drawn(seen), refresh=True)
            return
        for each in seen["rounds"][self._rounds :] if self._console else ():
            self._rounds += 1
            text = f"round {each['number']}: {each['accepted']} accepted, "
            self._line(f"{text}{each['refused']} refused, {each['seconds']:.1f} s")

    def tell(self, told: Told) -> None:
        """Take an event of the supervisor; a fleet that starts and ends as it should is quiet."""
        if told.event in ("process.ended", "process.killed", "process.stuck", "leftover.ended"):
            self._line(told.line(datetime.now().astimezone()))

    def _line(self, text: str) -> None:
        if self._console is not None:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def drawn(seen: dict[str, Any] | None) -> Group:
    """Return what was seen as tables.

    Args:
        seen: What :meth:`simulations.box.looking.Looker.look` returned.
    """
    if seen is None:
        return Group(Text("nothing has happened yet"))
    release, going = seen["release"], seen["open"]
    head = f"release {release['number']} · {release['digest'][:12]}" if release else "no release"
    if going:
        head += f" · round {going['number']}: {going['accepted']} of {going['asked']} updates"
    elif waiting := seen["doing"].get("waiting"):
        head += f" · {waiting}"
    rounds, devices = Table(), Table()
    for name in ("round", "accepted", "refused", "s", "bytes up", "bytes down"):
        rounds.add_column(name, justify="right")
    for each in seen["rounds"][-SHOWN_ROUNDS:]:
        counts = [f"{each[name]:,}" for name in ("number", "accepted", "refused")]
        sizes = [f"{each[name]:,}" for name in ("bytes_up", "bytes_down")]
        rounds.add_row(*counts, f"{each['seconds']:.1f}", *sizes)
    for name in ("device", "release", "serves", "macro-F1"):
        devices.add_column(name, justify="left" if name in ("device", "serves") else "right")
    for each in seen["devices"]:
        score = "-" if each["macro_f1"] is None else f"{each['macro_f1']:.3f}"
        number = "-" if each["release"] < 0 else str(each["release"])
        devices.add_row(each["name"], number, each["digest"][:12] or "-", score)
    return Group(Text(head), rounds, devices)
