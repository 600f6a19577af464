"""``fleet data``: list, inspect and convert data sets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.errors import InputError
from server.control.cli.render import Format, FormatOption, emit, progress_console

if TYPE_CHECKING:
    from rich.console import Console

    from fleet.har.dataset import DataSet
    from fleet.har.sources import Source
    from fleet.har.summary import Summary

__all__ = ["app"]

app = typer.Typer(
    name="data",
    help="List, inspect and convert data sets.",
    no_args_is_help=True,
    epilog="Start here: fleet data list",
)


@app.command(
    "list",
    epilog="Examples:\n\n"
    "fleet data list\n\n"
    "FLEET_DATA=~/har fleet data list --format json\n\n"
    "Next: fleet data inspect hapt",
)
def list_(format: FormatOption = Format.table) -> None:
    """List the data sets that can be used by name."""
    from fleet.har import sources

    found = sources.available()
    data = {
        "folders": [str(folder) for folder in sources.folders()],
        "default": sources.default_name(),
        "data_sets": [{**asdict(one), "path": one.path and str(one.path)} for one in found],
    }
    emit(data, format, lambda console: _draw_list(console, found, data))


@app.command(
    epilog="Examples:\n\n"
    "fleet data inspect hapt\n\n"
    "fleet data inspect my_set.npz --format json\n\n"
    "Next: fleet simulate --help",
)
def inspect(
    file_or_name: Annotated[
        str, typer.Argument(help="A .npz file, or a name of `fleet data list`.")
    ],
    format: FormatOption = Format.table,
) -> None:
    """Check a data set and show its people, classes, minutes and channels."""
    from fleet.har.dataset import digest
    from fleet.har.sources import find
    from fleet.har.summary import summarise

    with progress_console().status(f"Reading and checking {file_or_name}"):
        dataset = find(file_or_name)
        summary = summarise(dataset)
    data = {
        "name": dataset.name,
        "digest": digest(dataset),
        "labels": list(dataset.labels),
        "rate_hz": dataset.rate_hz,
        "window": dataset.window,
        "stride": dataset.stride,
        **asdict(summary),
        "info": dict(dataset.info),
    }
    emit(data, format, lambda console: _draw_data_set(console, dataset, summary))


@app.command(
    epilog="Examples:\n\n"
    "fleet data convert hapt 'HAPT Data Set' --out hapt.npz\n\n"
    "fleet data convert usc_had USC-HAD.zip --out data/usc_had.npz\n\n"
    "Next: fleet data inspect hapt.npz",
)
def convert(
    name: Annotated[str, typer.Argument(help="hapt, motionsense or usc_had.")],
    path: Annotated[Path, typer.Argument(help="The official download: its folder or archive.")],
    out: Annotated[
        Path, typer.Option("--out", help="The .npz to write; its .json goes beside it.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing data set.")] = False,
    format: FormatOption = Format.table,
) -> None:
    """Convert an official download to the canonical format."""
    from fleet.har import canonical
    from fleet.har.sources import CONVERTERS

    if name not in CONVERTERS:
        raise InputError(
            "unknown-converter",
            f"there is no converter {name!r}",
            f"Known: {', '.join(CONVERTERS)}",
        )
    npz = _target(out, name, force)
    with progress_console().status(f"Reading {path}") as status:
        dataset = CONVERTERS[name](path)
        status.update(f"Writing {npz}")
        canonical.write(dataset, npz)
    data = {
        "name": dataset.name,
        "written": [str(npz), str(npz.with_suffix(".json"))],
        "bytes": npz.stat().st_size,
        "windows": len(dataset.x),
        "subjects": len(dataset.subjects),
        "digest": canonical.digest(dataset),
    }
    emit(data, format, lambda console: _draw_written(console, data))


def _target(out: Path, name: str, force: bool) -> Path:
    """Return the ``.npz`` to write, unless that would replace a file unasked."""
    if out.is_dir():
        raise InputError(
            "out-is-folder", f"--out {out} is a folder", f"Name a file: {out / name}.npz"
        )
    npz = out if out.suffix == ".npz" else out.with_name(f"{out.name}.npz")
    there = [str(file) for file in (npz, npz.with_suffix(".json")) if file.exists()]
    if there and not force:
        raise InputError(
            "already-there",
            f"{' and '.join(there)} would be replaced",
            "Choose another --out, or add --force.",
        )
    return npz


def _draw_list(console: Console, found: list[Source], data: dict[str, Any]) -> None:
    from rich.markup import escape
    from rich.table import Column, Table

    name = Column("name", no_wrap=True)
    table = Table(name, "people", "windows", "channels", "Hz", "classes", "note")
    for one in found:
        numbers = (one.subjects, one.windows, one.channels, f"{one.rate_hz:g}", one.classes)
        cells = ["-"] * 5 if one.problem else [str(number) for number in numbers]
        note = one.problem or ("" if one.path else "built in")
        table.add_row(escape(one.name), *cells, escape(note))
    console.print(table)
    folders = dict.fromkeys(str(one.path.parent) for one in found if one.path)
    console.print(f"Default: {data['default']}. Files in: {escape(', '.join(folders) or 'none')}")


def _draw_data_set(console: Console, dataset: DataSet, summary: Summary) -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(
        f"[bold]{escape(dataset.name)}[/]: {summary.windows} windows, {len(summary.per_subject)}"
        f" people, {summary.recordings} recordings, {summary.minutes:.1f} min; {dataset.rate_hz:g}"
        f" Hz, window {dataset.window}, stride {dataset.stride}"
    )
    classes = Table("#", "class", "windows", "share", "minutes", title="Classes")
    for number, (label, count) in enumerate(zip(dataset.labels, summary.per_label, strict=True)):
        part = count / summary.windows
        minutes = f"{summary.minutes * part:.1f}"
        classes.add_row(str(number), escape(label), str(count), f"{part:.1%}", minutes)
    channels = Table("channel", "unit", "min", "max", "mean", "std", title="Channels")
    for one in summary.channels:
        values = (one.minimum, one.maximum, one.mean, one.std)
        channels.add_row(escape(one.name), escape(one.unit), *(f"{value:.3f}" for value in values))
    numbers = [str(number) for number in range(len(dataset.labels))]
    people = Table("person", *numbers, "all", title="Windows of each person by class #")
    for person, counts in summary.per_subject.items():
        people.add_row(str(person), *(str(count or "-") for count in counts), str(sum(counts)))
    for table in (classes, channels, people):
        console.print(table)


def _draw_written(console: Console, data: dict[str, Any]) -> None:
    from rich.markup import escape

    console.print(
        f"Wrote {escape(data['written'][0])} ({data['bytes'] / 2**20:.1f} MiB) and"
        f" {escape(data['written'][1])}: {data['windows']} windows of {data['subjects']} people."
    )
    console.print(f"Next: fleet data inspect {escape(data['written'][0])}")
