"""``fleet base``: train, inspect and renew bases; install and list those of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fleet.errors import InputError
from server.control.cli.base import INSTALL_EXAMPLES, LIST_EXAMPLES, install, list_
from server.control.cli.render import Format, FormatOption, emit
from server.control.cli.tables import room, told
from simulations.cli.base_renewal import GROW_EXAMPLES, REBASE_EXAMPLES, grow, rebase

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def group() -> None:
    """Train, inspect and renew base models, install them on a server, list those of a server."""


app.command(epilog=INSTALL_EXAMPLES)(install)
app.command("list", epilog=LIST_EXAMPLES)(list_)
app.command(epilog=REBASE_EXAMPLES)(rebase)
app.command(epilog=GROW_EXAMPLES)(grow)


@app.command(
    epilog="Examples:\n\nfleet base train --data hapt --out hapt-base.safetensors\n\n"
    "fleet base train --data my.npz --model t-resnet --rank 2 --out my-base.safetensors"
)
def train(
    out: Annotated[Path, typer.Option(help="File of the base.")],
    data: Annotated[str, typer.Option(help="Name or path of a data set.")] = "",
    classes: Annotated[str, typer.Option(help="basic or all.")] = "basic",
    model: Annotated[str, typer.Option(help="Backbone.")] = "small-cnn",
    frame: Annotated[
        str, typer.Option(help="Frame of the cores: svd, tt, random, gradient or people.")
    ] = "svd",
    rank: Annotated[int, typer.Option(help="Columns of each core.")] = 4,
    epochs: Annotated[int, typer.Option(help="Passes over the source people's windows.")] = 12,
    seed: Annotated[int, typer.Option(help="Divides the people; root of the weights.")] = 0,
    form: FormatOption = Format.table,
) -> None:
    """Train a base on the source half of a data set's people."""
    from fleet.adapt.base import save_base
    from fleet.config import RunConfig
    from fleet.har.population import population_of
    from server.prepare import obtain_base
    from simulations.cli.display import Display

    if out.exists():
        raise InputError("file-exists", f"{out} exists already; a base is never overwritten", "")
    config = RunConfig.parse(
        {
            "data": data,
            "classes": classes,
            "model": model,
            "frame": frame,
            "rank": rank,
            "seed": seed,
            "base_epochs": epochs,
        }
    )
    population = population_of(config)
    with Display(visible=form is Format.table) as progress:
        progress.stage("base", epochs)
        base = obtain_base(config, population, lambda e, loss: progress.advance(f"loss {loss:.3f}"))
    save_base(base, out)
    _show(base, out, form)


@app.command(epilog="Example:\n\nfleet base show hapt-base.safetensors")
def show(file: Path, form: FormatOption = Format.table) -> None:
    """Show what a base is: model, classes, channels, frames, digest."""
    from fleet.adapt.base import load_base

    _show(load_base(file), file, form)


def _show(base: Any, path: Path, form: Format) -> None:
    from fleet.adapt.network import folded_network
    from fleet.peft.registry import METHODS

    network = folded_network(base)
    record = base.record
    data = {
        "file": str(path),
        "digest": base.digest,
        "frame_digest": base.frame_digest,
        "model": record.model.model_dump(mode="json"),
        "labels": list(record.labels),
        "channels": [list(channel) for channel in record.channels],
        "rate_hz": record.rate_hz,
        "window": record.window,
        "stride": record.stride,
        "trained_on": record.trained_on,
        "frame": record.frame_kind,
        "rank": record.rank,
        "adapted_layers": sorted(base.frames),
        "parameters": sum(p.numel() for p in network.parameters()),
        "trained_parameters": {
            name: method.layout(network, base.frames).size for name, method in METHODS.items()
        },
    }
    emit(data, form, lambda console: _table(console, data))


def _table(console: Console, data: dict[str, Any]) -> None:
    table = Table("", "", show_header=False, title=data["file"])
    table.columns[1].overflow = "fold"
    for name, value in data.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, list):
            value = ", ".join(" ".join(v) if isinstance(v, list) else str(v) for v in value)
        table.add_row(name.replace("_", " "), str(value))
    room(console).print(table)
    # In one piece on any terminal, to be copied.
    told(console, f"digest {data['digest']}")
    told(console, f"Next: fleet base install {data['file']}")
