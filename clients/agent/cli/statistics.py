"""``fleet-device statistics``: batch-norm statistics that this device takes of its own windows."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.agent.cli.data import opened
from clients.agent.cli.own import check_confirmed, standing_of
from clients.agent.cli.render import DEFAULT_STATE, Format, FormatOption, StateOption, emit
from clients.agent.config import load_config

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["statistics"]

statistics = typer.Typer(no_args_is_help=True, add_completion=False)


@statistics.callback()
def group() -> None:
    """Take batch-norm statistics of this device's own windows, without labels; they stay here."""


@statistics.command(
    epilog="Examples:\n\nfleet-device statistics show\n\nfleet-device statistics show --format json"
)
def show(state: StateOption = DEFAULT_STATE, form: FormatOption = Format.table) -> None:
    """Say whether any are served, what they were taken of, and what they brought."""
    data = _standing(state.expanduser())
    emit(data, form, lambda console: _show(console, data))


@statistics.command(epilog="Example:\n\nfleet-device statistics on")
def on(state: StateOption = DEFAULT_STATE, form: FormatOption = Format.table) -> None:
    """Take them, train and serve under them; the agent follows within half a minute."""
    _switch(state.expanduser(), form, True)


@statistics.command(epilog="Example:\n\nfleet-device statistics off --format json")
def off(state: StateOption = DEFAULT_STATE, form: FormatOption = Format.table) -> None:
    """Serve the fleet's release alone, at once, and train under the fleet's statistics."""
    _switch(state.expanduser(), form, False)


@statistics.command("drop", epilog="Example:\n\nfleet-device statistics drop --yes")
def drop_(
    yes: Annotated[bool, typer.Option("--yes", help="Do it; it cannot be taken back.")] = False,
    state: StateOption = DEFAULT_STATE,
    form: FormatOption = Format.table,
) -> None:
    """Delete them; while they are on, the agent takes them anew of the windows that there are."""
    from clients.agent.calibrating.removing import drop

    state = state.expanduser()
    load_config(state)
    check_confirmed(yes, "dropping the statistics", "fleet-device statistics drop")
    with opened(state) as store:
        dropped = drop(state, store)
    data = {"dropped": dropped, **_standing(state)}
    told = "the device's own statistics are gone" if dropped else "there were no own statistics"
    emit(data, form, lambda console: console.print(told))


def _switch(state: Path, form: Format, wanted: bool) -> None:
    from clients.agent.calibrating.removing import switch

    changed = switch(state, load_config(state), wanted)
    data = {"changed": changed, **_standing(state)}
    emit(data, form, lambda console: _show(console, data))


def _standing(state: Path) -> dict[str, Any]:
    from clients.agent.calibrating.summary import standing

    wanted = load_config(state).statistics.own
    found = standing_of(state, standing, wanted)
    if found is None:
        return {"on": wanted, "served": None, "kept": None, "judged": None, "problem": None}
    return found


def _show(console: Console, data: dict[str, Any]) -> None:
    from clients.agent.calibrating.summary import line

    console.print(f"statistics     {line(data)}", markup=False, soft_wrap=True)
    if data["kept"] is not None:
        kept = data["kept"]
        at = datetime.fromtimestamp(kept["made_s"]).astimezone()
        console.print(
            f"taken          {at.isoformat(sep=' ', timespec='seconds')}, of {kept['people']} "
            f"people's windows, {kept['bytes']} bytes, {kept['digest'][:12]}…",
            markup=False,
            soft_wrap=True,
        )
