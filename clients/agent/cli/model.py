"""``fleet-device infer``, ``release`` and ``export``: the model that a device serves."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from clients.agent.cli.render import (
    DEFAULT_STATE,
    Format,
    FormatOption,
    StateOption,
    emit,
    note,
)
from fleet.errors import FleetError, InputError, StorageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clients.agent.serving.model import DeviceModel
    from clients.agent.serving.probe import Probe
    from fleet.adapt.base import BaseRecord

__all__ = ["export", "infer", "release"]

STANDARD_INPUT = "-"

release = typer.Typer(no_args_is_help=True, add_completion=False)
Wanted = Annotated[
    str, typer.Argument(help="Number of a kept release, or the beginning of its name; 0: the base.")
]


def infer(
    source: Annotated[
        str, typer.Argument(help="FILE.csv of samples, FILE.npz of windows, or - for CSV lines.")
    ],
    state: StateOption = DEFAULT_STATE,
    every: Annotated[
        bool, typer.Option("--probabilities", help="Print the probability of every class.")
    ] = False,
    form: Annotated[
        Format, typer.Option("--format", help="One JSON object per window, or lines for people.")
    ] = Format.json,
) -> None:
    """Recognise activities: one JSON line per window, with the release that answered.

    Samples are CSV with a header that names the base's channels, at its rate and in its units; they
    are cut into windows by its window and stride. From standard input each window is answered as
    soon as it is full, and a swap of the served release is followed without a restart.
    """
    import torch

    from clients.agent.serving.model import DeviceModel

    torch.set_num_threads(1)  # networks this small lose time on more
    model = DeviceModel(state.expanduser())
    if model.problem:
        note(f"not the current release answers: {model.problem}")
    count = 0
    for start, windows in _windows(source, model):
        labels, probabilities = model.predict(windows)
        for label, row in zip(labels, probabilities, strict=True):
            line: dict[str, Any] = {"window": count}
            if start is not None:
                line["start_s"] = round(start / model.about.rate_hz, 6)
            line |= {"label": label, "probability": _rounded(row.max())}
            line["release"] = model.served.number
            if model.personal:
                line["personal"] = True
            if every:
                pairs = zip(model.about.labels, row, strict=True)
                line["probabilities"] = {name: _rounded(value) for name, value in pairs}
            _print_line(line, form)
            count += 1
    if not count:
        note("no whole window in the input")


infer.examples = (  # type: ignore[attr-defined]  # the root prints it under the help
    "Examples:\n\nfleet-device infer walk.csv\n\nfleet-device infer windows.npz --probabilities"
    "\n\ntail -f samples.csv | fleet-device infer - --state /var/lib/corefleet"
)


@release.callback()
def group() -> None:
    """List, use and verify the releases that this device holds."""


@release.command(
    "list",
    epilog="Examples:\n\nfleet-device release list\n\nfleet-device release list --format json",
)
def list_(state: StateOption = DEFAULT_STATE, form: FormatOption = Format.table) -> None:
    """List the releases that this device can serve, and which one it does."""
    from clients.agent.serving.inventory import list_releases
    from clients.agent.serving.serve import Serving

    serving = Serving(state.expanduser())
    rows = [row.model_dump() for row in list_releases(serving)]
    served = serving.served
    data = {"served": served and served.model_dump(), "releases": rows}
    columns = ("number", "name", "method", "served", "problem")
    emit(data, form, lambda console: _table(console, columns, rows))


@release.command(
    epilog="Examples:\n\nfleet-device release use 7\n\n"
    "fleet-device release use 7 --probe labelled.npz --margin 0.02\n\n"
    "fleet-device release use 0 --no-probe"
)
def use(
    wanted: Wanted,
    state: StateOption = DEFAULT_STATE,
    probe: Annotated[
        Path | None,
        typer.Option(
            help="Windows x and classes y (NPZ) on which macro-F1 must not fall; default: those"
            " that the store holds out."
        ),
    ] = None,
    unjudged: Annotated[
        bool, typer.Option("--no-probe", help="Serve it whatever labelled windows say.")
    ] = False,
    margin: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="By how much it may fall.")
    ] = 0.05,
    form: FormatOption = Format.table,
) -> None:
    """Serve a kept release: merge, verify, swap; running readers follow by themselves."""
    from clients.agent.serving.serve import Serving

    serving = Serving(state.expanduser())
    if unjudged and probe is not None:
        raise InputError("probe-unclear", "--probe and --no-probe exclude each other", "")
    about = serving.held.base.record
    judged = None if unjudged else _probe(state.expanduser(), about, probe, margin)
    outcome = serving.promote(serving.held.kept(wanted), judged)
    if not outcome.swapped and outcome.reason != "already-served":
        raise FleetError(outcome.reason, outcome.detail, "What was served still is.")
    emit(
        outcome.model_dump(mode="json"),
        form,
        lambda console: console.print(f"{outcome.reason}: {outcome.detail}"),
    )


@release.command(epilog="Example:\n\nfleet-device release verify --format json")
def verify(state: StateOption = DEFAULT_STATE, form: FormatOption = Format.table) -> None:
    """Read everything back: digests, finiteness, and what is served merged anew from the base."""
    from clients.agent.serving.inventory import verify as check_all
    from clients.agent.serving.serve import Serving

    checks = [check.model_dump() for check in check_all(Serving(state.expanduser()))]
    wrong = [check for check in checks if check["problem"]]
    if wrong:
        raise StorageError(
            "not-whole",
            "; ".join(f"{check['what']}: {check['problem']}" for check in wrong),
            "What answers is whole all the same; starting the agent puts the rest right.",
        )
    emit(
        {"checks": checks},
        form,
        lambda console: _table(console, ("what", "digest"), checks),
    )


def export(
    out: Annotated[Path, typer.Option("--out", help="The ONNX file to write.")],
    state: StateOption = DEFAULT_STATE,
    form: FormatOption = Format.table,
) -> None:
    """Write the served model as ONNX: raw windows in, probabilities out."""
    from clients.agent.serving.export import export_onnx

    served = export_onnx(state.expanduser(), out)
    emit(
        {"file": str(out), "served": served.model_dump(mode="json")},
        form,
        lambda console: console.print(f"release {served.number} ({served.name}) written to {out}"),
    )


export.examples = (  # type: ignore[attr-defined]
    "Example:\n\nfleet-device export --out model.onnx --state /var/lib/corefleet"
)


def _probe(state: Path, about: BaseRecord, file: Path | None, margin: float) -> Probe | None:
    """Return the labelled windows that judge a release: a file's, or those that were held out."""
    from clients.agent.answering.labelled import probe_of
    from clients.agent.serving.probe import Probe
    from clients.agent.serving.samples import labelled_windows
    from clients.agent.store.store import FILE_NAME, open_reader

    if file is not None:
        return Probe.of_raw(about, *labelled_windows(file, about), margin=margin)
    if not (state / FILE_NAME).is_file():
        return None
    with open_reader(state, clock=time.time) as store:
        return probe_of(store, about, margin)


def _windows(source: str, model: DeviceModel) -> Iterator[tuple[int | None, NDArray[np.float32]]]:
    from clients.agent.serving.samples import csv_windows, npz_windows

    if source.endswith(".npz"):
        yield None, npz_windows(Path(source), model.about)
        return
    try:
        if source == STANDARD_INPUT:
            yield from csv_windows(sys.stdin, model.about)
            return
        with open(source, newline="", encoding="utf-8") as lines:
            yield from csv_windows(lines, model.about)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError("csv-unreadable", f"{source} cannot be read: {error}", "") from error


def _rounded(probability: np.floating[Any]) -> float:
    return round(float(probability), 6)


def _print_line(line: dict[str, Any], form: Format) -> None:
    if form is Format.json:
        text = json.dumps(line)
    else:
        at = f"{line['start_s']:>10.2f} s" if "start_s" in line else f"{line['window']:>10}"
        text = f"{at}  {line['label']:<24} {line['probability']:.3f}  release {line['release']}"
    print(text, flush=True)


def _table(console: Console, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    table = Table(*columns)
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    console.print(table)
