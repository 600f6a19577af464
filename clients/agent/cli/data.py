"""``fleet-device ingest``, ``label`` and ``forget``: what goes into the store and out of it."""

from __future__ import annotations

import csv
import hashlib
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from clients.agent.cli.render import DEFAULT_STATE, Format, FormatOption, StateOption, emit, note
from fleet.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from clients.agent.intake import IntakeReport, IntakeSpec
    from clients.agent.store import Store

__all__ = ["forget", "ingest", "label"]

FORMS = ("csv", "jsonl")
SPLITS = ("blocks", "train", "held-out")
IDLE_S = 3600.0

PersonOption = Annotated[str, typer.Option("--person", help="Who wears the sensor.")]


def ingest(
    source: Annotated[
        str, typer.Argument(help="A CSV or JSON-lines file; - is standard input.")
    ] = "-",
    person: PersonOption = "owner",
    form: Annotated[
        str, typer.Option("--as", help="csv or jsonl; told by a file's name otherwise.")
    ] = "",
    time_column: Annotated[
        str, typer.Option("--time", help="Column of the time, as NAME or NAME:s|ms|us|ns.")
    ] = "time:s",
    split: Annotated[
        str, typer.Option("--split", help="Let windows train, be held-out, or both by blocks.")
    ] = "blocks",
    socket: Annotated[
        Path | None, typer.Option("--socket", help="Listen on this Unix socket instead.")
    ] = None,
    idle_s: Annotated[
        float, typer.Option("--idle-s", help="Silence that ends the listening, seconds.", min=0.1)
    ] = IDLE_S,
    name: Annotated[
        str, typer.Option("--name", help="Name of a stream; one of that name goes on.")
    ] = "stdin",
    state: StateOption = DEFAULT_STATE,
    format: FormatOption = Format.table,
) -> None:
    """Take in samples: even out the rate, cut windows, keep them durably.

    Taking in the same file twice adds nothing, and one that was cut off goes on. Columns, units and
    axes are those of the table intake in device.toml.
    """
    from clients.agent.intake.sources import form_of, ingest_file

    folder = state.expanduser()
    spec = _spec(folder, time_column, split)
    reports: dict[str, Any] = {}
    with _opened(folder) as store:
        if socket is not None:
            reports = _from_socket(socket, idle_s, form, spec, store, person, name)
        elif source == "-":
            reports[name] = asdict(_from_stdin(form, spec, store, person, name))
        else:
            path = Path(source)
            wanted = _form(form) if form else form_of(path)
            reports[source] = asdict(ingest_file(path, wanted, spec, store, person))
        store.tidy()
    data = {"person": person, "sources": reports}
    emit(data, format, lambda console: _draw_reports(console, reports))


def label(
    name: Annotated[str, typer.Argument(help="What was done; one of the base's labels.")] = "",
    person: PersonOption = "owner",
    start: Annotated[
        float | None, typer.Option("--from", help="Start, seconds since the epoch.")
    ] = None,
    end: Annotated[float | None, typer.Option("--to", help="End, likewise.")] = None,
    window: Annotated[int | None, typer.Option("--window", help="One window, by its id.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="CSV with the columns from, to and label.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Take labels back.")] = False,
    author: Annotated[str, typer.Option("--by", help="Who says so.")] = "owner",
    state: StateOption = DEFAULT_STATE,
    format: FormatOption = Format.table,
) -> None:
    """Say what a person did, by range of time or by window; the last word holds.

    A label may come before its windows or long after. A file that was read before changes nothing.
    """
    ranged = start is not None and end is not None
    ways = [ranged, window is not None, file is not None]
    if sum(ways) != 1 or (file is None and bool(name) == clear):
        raise InputError(
            "label-unclear",
            "name a label (or --clear) with --from and --to, with --window, or give a --file",
            "Examples: fleet-device label --help",
        )
    said = None if clear else name
    with _opened(state.expanduser()) as store:
        if file is not None:
            windows, statements = _label_file(store, file, person, author)
        elif window is not None:
            windows, statements = store.labels.window(window, said, author), 1
        else:
            windows = store.labels.range(person, cast(float, start), cast(float, end), said, author)
            statements = 1
        counts = _counted(store)
    data = {"statements": statements, "windows": windows, "store": counts}
    emit(data, format, lambda console: _draw_label(console, data))


def forget(
    person: Annotated[str, typer.Argument(help="Whose data to delete.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; it cannot be taken back.")] = False,
    state: StateOption = DEFAULT_STATE,
    format: FormatOption = Format.table,
) -> None:
    """Delete a person's windows, labels, replay and journal, and say what the server still holds.

    Counts stay, since they name nobody. Updates that the server has already are listed: only its
    operator can act on them.
    """
    if not yes:
        raise InputError(
            "not-confirmed",
            f"forgetting {person!r} cannot be taken back, so it needs a confirmation",
            f"fleet-device forget {person} --yes",
        )
    with _opened(state.expanduser()) as store:
        done = store.forget(person)
    held = [{"plan": plan, "round": number} for plan, number in done.server_holds]
    data = {
        "person": person,
        "deleted": dict(done.deleted),
        "server_holds": held,
        "cleared": done.cleared,
    }
    emit(data, format, lambda console: _draw_forgotten(console, data))


_EXAMPLES = {
    ingest: (
        "fleet-device ingest walk.csv --person ada",
        "fleet-device ingest log.jsonl --person ada --time t:ms --format json",
        "mosquitto_sub -t waist | fleet-device ingest - --as jsonl --person ada --name waist",
        "Next: fleet-device label walking --person ada --from 1767225600 --to 1767225660",
    ),
    label: (
        "fleet-device label walking --person ada --from 1767225600 --to 1767225660 --by ada",
        "fleet-device label sitting --window 118",
        "fleet-device label --file diary.csv --person ada",
        "Next: fleet-device status",
    ),
    forget: ("fleet-device forget ada --yes", "fleet-device forget ada --yes --format json"),
}
for _command, _lines in _EXAMPLES.items():
    # The root shows a function's examples under its help.
    _command.__dict__["examples"] = "Examples:\n\n" + "\n\n".join(_lines)


def _opened(folder: Path) -> Store:
    from clients.agent.config import load_config
    from clients.agent.store import Caps, open_store

    caps = Caps.model_validate(load_config(folder).caps.model_dump())
    store = open_store(folder, clock=time.time, caps=caps)
    for notice in store.notices:
        note(f"note: {notice}", style="yellow")
    return store


def _spec(folder: Path, time_column: str, split: str) -> IntakeSpec:
    from clients.agent.config import load_config
    from clients.agent.intake import spec_of
    from clients.agent.intake.spec import TIME_UNITS
    from fleet.adapt.base import load_base

    column, _, unit = time_column.rpartition(":") if ":" in time_column else (time_column, "", "s")
    if unit not in TIME_UNITS or not column:
        raise InputError("bad-time", f"--time is NAME or NAME:s|ms|us|ns, not {time_column!r}")
    if split not in SPLITS:
        raise InputError("bad-split", f"--split is {' or '.join(SPLITS)}, not {split!r}")
    config = load_config(folder)
    intake = config.intake
    return spec_of(
        load_base(config.base_path(folder)).record,
        columns=intake.channels,
        units=intake.units,
        axes=intake.axes,
        source_rate_hz=intake.rate_hz,
        time_column=column,
        time_unit=cast(Literal["s", "ms", "us", "ns"], unit),
        split=cast(Literal["blocks", "train", "held-out"], split),
    )


def _form(text: str) -> Literal["csv", "jsonl"]:
    if text not in FORMS:
        raise InputError("bad-form", f"--as is {' or '.join(FORMS)}, not {text!r}")
    return cast(Literal["csv", "jsonl"], text)


def _from_stdin(form: str, spec: IntakeSpec, store: Store, person: str, name: str) -> IntakeReport:
    from clients.agent.intake.sources import ingest_stream

    return ingest_stream(sys.stdin.buffer, _form(form or "jsonl"), spec, store, person, name)


def _from_socket(
    path: Path, idle_s: float, form: str, spec: IntakeSpec, store: Store, person: str, name: str
) -> dict[str, Any]:
    """Take in one connection after another; each is a stream of the same name."""
    from clients.agent.intake.sources import connections, ingest_stream

    reports: dict[str, Any] = {}
    with connections(path, idle_s) as streams:
        note(f"listening on {path}")
        for number, stream in enumerate(streams, start=1):
            report = ingest_stream(stream, _form(form or "jsonl"), spec, store, person, name)
            reports = {f"{name} #{number}": asdict(report)}  # the last; the store counts them all
    return reports


def _label_file(store: Store, path: Path, person: str, author: str) -> tuple[int, int]:
    """State every row of a file in one transaction; returns windows labelled and rows."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("labels-unreadable", f"{path} cannot be read: {error}") from error
    windows = 0
    with store.transaction():
        for number, row in enumerate(rows, start=2):
            try:
                start, end, said = float(row["from"]), float(row["to"]), row["label"].strip()
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise InputError(
                    "labels-unreadable",
                    f"{path}, line {number}: needs numbers in from and to and a text in label",
                    "Its first line must be: from,to,label. Nothing of the file was kept.",
                ) from error
            key = hashlib.sha256(f"{person}|{start!r}|{end!r}|{said}|{author}".encode()).hexdigest()
            windows += store.labels.range(person, start, end, said, author, key[:32])
    return windows, len(rows)


def _counted(store: Store) -> list[dict[str, Any]]:
    return [
        {"split": split, "label": name, "windows": count}
        for (split, name), count in store.windows.counts().items()
    ]


def _draw_reports(console: Console, reports: dict[str, Any]) -> None:
    from rich.table import Table

    if not reports:
        console.print("nobody connected")
    for name, report in reports.items():
        table = Table(title=name, show_header=False)
        for what, count in report.items():
            table.add_row(what.replace("_", " "), str(count))
        console.print(table)


def _draw_label(console: Console, data: dict[str, Any]) -> None:
    from rich.table import Table

    console.print(f"{data['statements']} statement(s), {data['windows']} window(s) labelled now")
    table = Table("split", "label", "windows")
    for row in data["store"]:
        table.add_row(row["split"], row["label"] or "(none)", str(row["windows"]))
    console.print(table)


def _draw_forgotten(console: Console, data: dict[str, Any]) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in data["deleted"].items() if count)
    console.print(f"deleted: {kinds or 'nothing was kept of this person'}")
    for row in data["server_holds"]:
        console.print(f"the server holds an update: plan {row['plan']}, round {row['round']}")
    if not data["cleared"]:
        console.print("another process reads the store; its log is emptied when that ends")
