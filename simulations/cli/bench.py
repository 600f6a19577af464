"""``fleet bench``: figures beside a reference, both sides in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fleet.errors import InputError
from server.control.cli.render import Format, FormatOption, emit
from simulations.cli import (
    bench_continual,
    bench_drift,
    bench_fleet,
    bench_growth,
    bench_peft,
    bench_simulate,
)

if TYPE_CHECKING:
    from simulations.benchmarks.training import Setting

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


@app.command(epilog="Example:\n\nfleet bench bridge --entries 1280")
def bridge(
    entries: Annotated[int, typer.Option(help="Entries of a message's array.", min=1)] = 1280,
    runs: Annotated[int, typer.Option(help="Fresh processes of each side.", min=3)] = 9,
    form: FormatOption = Format.table,
) -> None:
    """Start Flower's client app with and without the bridge; send messages over the link."""
    from simulations.benchmarks.bridge import run

    _emit(run(entries, runs), form)


app.command(help=bench_peft.HELP, epilog=bench_peft.EPILOG)(bench_peft.peft)
app.command(help=bench_fleet.HELP, epilog=bench_fleet.EPILOG)(bench_fleet.fleet)
app.command(help=bench_drift.HELP, epilog=bench_drift.EPILOG)(bench_drift.drift)
app.command(help=bench_growth.HELP, epilog=bench_growth.EPILOG)(bench_growth.growth)
app.command(help=bench_simulate.HELP, epilog=bench_simulate.EPILOG)(bench_simulate.simulate)
app.command(help=bench_continual.HELP, epilog=bench_continual.EPILOG)(bench_continual.continual)


Model = Annotated[str, typer.Option(help="Backbone.")]
Batch = Annotated[int, typer.Option(help="Windows per step.", min=2)]
MicroBatch = Annotated[int, typer.Option(help="Windows that run together; 0: the batch.", min=0)]
Runs = Annotated[int, typer.Option(help="Timed steps of each side.", min=1)]
Out = Annotated[Path | None, typer.Option(help="Folder for the CSV and the plot.")]
Rank = Annotated[int, typer.Option(help="Rank of cores and LoRA.", min=1)]
Frame = Annotated[str, typer.Option(help="Frame of the cores: svd, tt or random.")]
Channels = Annotated[int, typer.Option(help="Sensor channels.", min=1)]
Window = Annotated[int, typer.Option(help="Samples per window.", min=8)]
Classes = Annotated[int, typer.Option(help="Classes.", min=2)]
Resident = Annotated[
    bool,
    typer.Option("--resident", help="Also resident memory, in processes of their own; on Linux."),
]


@app.command(epilog="Example:\n\nfleet bench memory --model t-resnet --batch 64 --micro-batch 8")
def memory(
    model: Model = "t-resnet",
    batch: Batch = 64,
    micro_batch: MicroBatch = 0,
    rank: Rank = 4,
    frame: Frame = "svd",
    channels: Channels = 6,
    window: Window = 128,
    classes: Classes = 12,
    runs: Runs = 3,
    resident: Resident = False,
    out: Out = None,
    form: FormatOption = Format.table,
) -> None:
    """Measure what a training step keeps and holds, from the allocator, beside full and LoRA."""
    setting = _setting(model, batch, micro_batch, rank, frame, channels, window, classes, runs)
    _training(setting, "dynamic_bytes", out, form, resident)


@app.command(epilog="Example:\n\nfleet bench step --model t-resnet --batch 64 --runs 9")
def step(
    model: Model = "t-resnet",
    batch: Batch = 64,
    micro_batch: MicroBatch = 0,
    rank: Rank = 4,
    frame: Frame = "svd",
    channels: Channels = 6,
    window: Window = 128,
    classes: Classes = 12,
    runs: Runs = 9,
    out: Out = None,
    form: FormatOption = Format.table,
) -> None:
    """Time a training step on one thread, beside full fine-tuning, LoRA and inference."""
    setting = _setting(model, batch, micro_batch, rank, frame, channels, window, classes, runs)
    _training(setting, "step_seconds", out, form)


def _setting(
    model: str,
    batch: int,
    micro_batch: int,
    rank: int,
    frame: str,
    channels: int,
    window: int,
    classes: int,
    runs: int,
) -> Setting:
    from fleet.adapt.frames import FRAME_KINDS
    from fleet.models.config import ModelConfig
    from simulations.benchmarks.training import Setting

    kind = next((k for k in FRAME_KINDS if k == frame), None)
    if kind is None:
        raise InputError(
            "unknown-frame", f"there is no frame {frame!r}", f"Known: {', '.join(FRAME_KINDS)}."
        )
    config = ModelConfig(name=model, channels=channels, classes=classes, window=window)
    return Setting(config, batch, min(micro_batch or batch, batch), rank, kind, runs)


def _training(
    setting: Setting, key: str, out: Path | None, form: Format, resident: bool = False
) -> None:
    from simulations.benchmarks.training import run
    from simulations.benchmarks.training_output import draw_table, write_files

    record = run(setting, resident)
    if out is not None:
        write_files(record, key, out)
    emit(record, form, lambda console: draw_table(console, record, key))


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
