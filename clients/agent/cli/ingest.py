"""``fleet-device ingest``: samples from a file, a pipe, a socket or a broker into the store."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from clients.agent.cli.data import PersonOption, opened
from clients.agent.cli.render import DEFAULT_STATE, Format, FormatOption, StateOption, emit, note
from fleet.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from rich.console import Console

    from clients.agent.intake import IntakeSpec
    from clients.agent.intake.broker import Broker
    from clients.agent.store import Store

__all__ = ["ingest"]

FORMS = ("csv", "jsonl")
SPLITS = ("blocks", "train", "held-out")
STREAM = "stdin"
IDLE_S = 3600.0
AWAY_S = 600.0


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
    mqtt: Annotated[
        str,
        typer.Option("--mqtt", metavar="URL", help="Subscribe to mqtt[s]://HOST:PORT/TOPIC."),
    ] = "",
    tls_ca: Annotated[
        Path | None, typer.Option("--tls-ca", help="PEM roots that an mqtts broker is trusted by.")
    ] = None,
    credentials: Annotated[
        Path | None,
        typer.Option("--credentials", help="Line 1: the broker's user, line 2: the password."),
    ] = None,
    away_s: Annotated[
        float, typer.Option("--away-s", help="How long the broker may be away, seconds.", min=0.1)
    ] = AWAY_S,
    idle_s: Annotated[
        float, typer.Option("--idle-s", help="Silence that ends the listening, seconds.", min=0.1)
    ] = IDLE_S,
    name: Annotated[
        str,
        typer.Option(
            "--name",
            help="Name of a stream; one of that name goes on.",
            show_default=STREAM + ", or the topic",
        ),
    ] = "",
    state: StateOption = DEFAULT_STATE,
    format: FormatOption = Format.table,
) -> None:
    """Take in samples: even out the rate, cut windows, keep them durably.

    Taking in the same file twice adds nothing, and one that was cut off goes on. Columns, units and
    axes are those of the table intake in device.toml.
    """
    from clients.agent.intake.sources import form_of, ingest_file

    _check_sources(source, socket, mqtt, tls_ca, credentials)
    folder = state.expanduser()
    receive = _receiver(mqtt, tls_ca, credentials) if mqtt else None
    spec = _spec(folder, time_column, split)
    reports: dict[str, Any] = {}
    with opened(folder) as store:
        if receive is not None:
            reports = receive(folder, form, spec, store, person, name, idle_s, away_s)
        elif socket is not None:
            reports = _from_socket(socket, idle_s, form, spec, store, person, name or STREAM)
        elif source == "-":
            reports = _from_stdin(form, spec, store, person, name or STREAM)
        else:
            path = Path(source)
            wanted = _form(form) if form else form_of(path)
            reports[source] = asdict(ingest_file(path, wanted, spec, store, person))
        store.tidy()
    data = {"person": person, "sources": reports}
    emit(data, format, lambda console: _draw_reports(console, reports))


ingest.__dict__["examples"] = "Examples:\n\n" + "\n\n".join(
    (
        "fleet-device ingest walk.csv --person ada",
        "fleet-device ingest log.jsonl --person ada --time t:ms --format json",
        "cat log.jsonl | fleet-device ingest - --person ada --name waist",
        "fleet-device ingest --mqtt mqtt://localhost/sensors/waist --person ada",
        "fleet-device ingest --mqtt mqtts://broker.example/home/+/imu --tls-ca ca.crt"
        " --credentials broker.txt --as csv",
        "Next: fleet-device label walking --person ada --from 1767225600 --to 1767225660",
    )
)


def _check_sources(
    source: str, socket: Path | None, mqtt: str, tls_ca: Path | None, credentials: Path | None
) -> None:
    if (source != "-") + (socket is not None) + bool(mqtt) > 1:
        raise InputError("source-unclear", "name one source: a file, --socket or --mqtt")
    if not mqtt and (tls_ca or credentials):
        raise InputError("source-unclear", "--tls-ca and --credentials belong to --mqtt")


def _receiver(url: str, tls_ca: Path | None, credentials: Path | None) -> Callable[..., Any]:
    """Check all that needs no store, and return what receives."""
    from clients.agent.intake.broker import broker_of, with_credentials

    broker, topic = broker_of(url, tls_ca)
    if credentials is not None:
        broker = with_credentials(broker, credentials.expanduser())
        if not broker.tls:
            note("note: the password goes to the broker unencrypted; mqtts:// hides it", "yellow")
    try:
        import paho.mqtt.client  # noqa: F401
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "extra-missing",
            "--mqtt needs the 'device-mqtt' extra; paho-mqtt is not installed",
            "pip install 'corefleet[device-mqtt]'",
        ) from error
    return partial(_from_mqtt, broker, topic)


def _from_mqtt(
    broker: Broker,
    topic: str,
    folder: Path,
    form: str,
    spec: IntakeSpec,
    store: Store,
    person: str,
    name: str,
    idle_s: float,
    away_s: float,
) -> dict[str, Any]:
    from clients.agent.config import load_config
    from clients.agent.intake.mqtt import ingest_mqtt

    config = load_config(folder)
    name = name or topic
    report = ingest_mqtt(
        broker,
        topic,
        _form(form or "jsonl"),
        spec,
        store,
        person,
        name,
        device=config.name,
        idle_s=idle_s,
        columns=config.intake.channels,
        away_s=away_s,
        say=lambda text: note(f"note: {text}", style="yellow"),
    )
    return {name: asdict(report)}


def _spec(folder: Path, time_column: str, split: str) -> IntakeSpec:
    from clients.agent.config import load_config
    from clients.agent.intake import spec_of
    from clients.agent.intake.spec import TIME_UNITS
    from clients.agent.serving.folder import ModelFolder
    from fleet.adapt.base import load_base

    column, _, unit = time_column.rpartition(":") if ":" in time_column else (time_column, "", "s")
    if unit not in TIME_UNITS or not column:
        raise InputError("bad-time", f"--time is NAME or NAME:s|ms|us|ns, not {time_column!r}")
    if split not in SPLITS:
        raise InputError("bad-split", f"--split is {' or '.join(SPLITS)}, not {split!r}")
    config = load_config(folder)
    intake = config.intake
    return spec_of(
        load_base(ModelFolder(folder).base_in_use()).record,
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


def _from_stdin(
    form: str, spec: IntakeSpec, store: Store, person: str, name: str
) -> dict[str, Any]:
    from clients.agent.intake.sources import ingest_stream

    wanted = _form(form or "jsonl")
    return {name: asdict(ingest_stream(sys.stdin.buffer, wanted, spec, store, person, name))}


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


def _draw_reports(console: Console, reports: dict[str, Any]) -> None:
    from rich.table import Table

    if not reports:
        console.print("nobody connected")
    for name, report in reports.items():
        table = Table(title=name, show_header=False)
        for what, count in report.items():
            table.add_row(what.replace("_", " "), str(count))
        console.print(table)
