"""``fleet-device personal``: the private core that this device learns for itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.agent.cli.data import opened
from clients.agent.cli.own import check_confirmed, standing_of
from clients.agent.cli.render import DEFAULT_STATE, Format, FormatOption, StateOption, emit
from clients.agent.config import load_config

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["personal"]

personal = typer.Typer(no_args_is_help=True, add_completion=False)


@personal.callback()
def group() -> None:
    """Learn a private core on top of the fleet's release; it never leaves this device."""


@personal.command(
    epilog="Examples:\n\nfleet-device personal show\n\nfleet-device personal show --format json"
)
def show(state: StateOption = DEFAULT_STATE, form: FormatOption = Format.table) -> None:
    """Say whether one is served, what it was learned on, and what it brought."""
    data = _standing(state.expanduser())
    emit(data, form, lambda console: _show(console, data))


@personal.command(epilog="Example:\n\nfleet-device personal on")
def on(state: StateOption = DEFAULT_STATE, form: FormatOption = Format.table) -> None:
    """Learn one, and serve it if it helps; the agent follows within half a minute."""
    _switch(state.expanduser(), form, True)


@personal.command(epilog="Example:\n\nfleet-device personal off --format json")
def off(state: StateOption = DEFAULT_STATE, form: FormatOption = Format.table) -> None:
    """Serve the fleet's release alone, at once; the private core is kept for another day."""
    _switch(state.expanduser(), form, False)


@personal.command("drop", epilog="Example:\n\nfleet-device personal drop --yes")
def drop_(
    yes: Annotated[bool, typer.Option("--yes", help="Do it; it cannot be taken back.")] = False,
    state: StateOption = DEFAULT_STATE,
    form: FormatOption = Format.table,
) -> None:
    """Delete the private core; while they are on, the next one begins at nothing."""
    from clients.agent.private.removing import drop

    state = state.expanduser()
    load_config(state)
    check_confirmed(yes, "dropping the private core", "fleet-device personal drop")
    with opened(state) as store:
        dropped = drop(state, store)
    data = {"dropped": dropped, **_standing(state)}
    told = "the private core is gone" if dropped else "there was no private core"
    emit(data, form, lambda console: console.print(told))


def _switch(state: Path, form: Format, wanted: bool) -> None:
    from clients.agent.private.removing import switch

    changed = switch(state, load_config(state), wanted)
    data = {"changed": changed, **_standing(state)}
    emit(data, form, lambda console: _show(console, data))


def _standing(state: Path) -> dict[str, Any]:
    from clients.agent.private.summary import standing

    wanted = load_config(state).personal.on
    found = standing_of(state, standing, wanted)
    if found is None:
        return {"on": wanted, "served": None, "core": None, "problem": None}
    return found


def _show(console: Console, data: dict[str, Any]) -> None:
    from clients.agent.private.summary import line

    console.print(f"private core   {line(data)}", markup=False, soft_wrap=True)
    if data["core"] is not None:
        core = data["core"]
        console.print(
            f"learned on     release {core['release']}, of {core['people']} people's windows, "
            f"{core['bytes']} bytes, {core['digest'][:12]}…",
            markup=False,
            soft_wrap=True,
        )
