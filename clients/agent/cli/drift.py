"""``fleet-device drift``: what the device's drift detectors have seen, and what follows from it."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from clients.agent.cli.render import DEFAULT_STATE, Format, FormatOption, StateOption, emit
from clients.agent.config import load_config
from fleet.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["drift"]

drift = typer.Typer(no_args_is_help=True, add_completion=False)

PHASES = {
    "learning-reference": "learns what the device's features are like",
    "warming-up": "learns what is normal",
    "watching": "watches",
}


@drift.callback()
def group() -> None:
    """Show what the device's drift detectors have seen."""


@drift.command(
    epilog="Examples:\n\nfleet-device drift show\n\nfleet-device drift show --format json"
)
def show(state: StateOption = DEFAULT_STATE, form: FormatOption = Format.table) -> None:
    """Show detectors, alarms, and in how many more rounds the device takes part.

    Nothing is changed, and no process is asked. [drift] in device.toml decides what is watched.
    """
    from clients.agent.drifting.showing import shown
    from clients.agent.store.store import FILE_NAME, open_reader

    state = state.expanduser()
    config = load_config(state)
    if not (state / FILE_NAME).is_file():
        raise InputError(
            "no-store",
            f"{state} has no windows yet, so nothing was watched",
            "Take some in: fleet-device ingest FILE --person NAME",
        )
    with open_reader(state, clock=time.time) as store:
        data = {"name": config.name, **shown(store, config.drift, time.time())}
    emit(data, form, lambda console: _draw(console, data))


def _draw(console: Console, data: dict[str, Any]) -> None:
    rows = {
        "device": data["name"],
        "watches": "yes" if data["watch"] else "no: set watch in [drift] of device.toml",
        **{each["signal"]: _signal(each) for each in data["signals"]},
        "takes part": _participation(data),
        "alarms": str(data["alarms_ever"]),
    }
    for key, value in rows.items():
        console.print(f"{key:<14} {value}", markup=False, soft_wrap=True)
    if not data["alarms"]:
        return
    from rich.table import Table

    table = Table("noticed", "window", "signal")
    for alarm in data["alarms"]:
        table.add_row(_when(alarm["at_s"]), _when(alarm["window_s"]), alarm["signal"])
    console.print(table)


def _signal(each: dict[str, Any]) -> str:
    return f"{PHASES[each['phase']]}; {each['windows']} window(s) seen"


def _participation(data: dict[str, Any]) -> str:
    left = data["rounds_left"]
    if left is None:
        return "always"
    since = "joining" if data["changed_s"] is None else _when(data["changed_s"])
    if left:
        return f"in {left} more round(s); the last change: {since}"
    return f"no: nothing changed since {since}"


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).astimezone().isoformat(sep=" ", timespec="seconds")
