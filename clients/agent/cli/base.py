"""``fleet-device base``: the bases that a device holds, and one more by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from clients.agent.cli.render import DEFAULT_STATE, Format, FormatOption, StateOption, emit

__all__ = ["base"]

base = typer.Typer(no_args_is_help=True, add_completion=False)


@base.callback()
def group() -> None:
    """List the bases that this device holds, or add one before the fleet moves to it."""


@base.command(
    "list", epilog="Examples:\n\nfleet-device base list\n\nfleet-device base list --format json"
)
def list_(state: StateOption = DEFAULT_STATE, form: FormatOption = Format.table) -> None:
    """List the bases that this device holds, and which one is in use."""
    from clients.agent.serving.inventory import list_bases
    from clients.agent.serving.serve import Serving

    rows = [row.model_dump() for row in list_bases(Serving(state.expanduser()))]
    emit({"bases": rows}, form, lambda console: _table(console, rows))


@base.command(
    epilog="Example:\n\nfleet-device base add base-2.safetensors\n\n"
    "Next: the server's fleet release rebase DIGEST reaches this device with a core alone"
)
def add(
    file: Annotated[Path, typer.Argument(help="A base: fleet base rebase --out FILE.")],
    state: StateOption = DEFAULT_STATE,
    form: FormatOption = Format.table,
) -> None:
    """Keep a further base; nothing is served of it before the fleet's release is.

    For a base that is too large for a message, or a device behind a slow link. It goes again once
    another base was added or came, and no kept release is of it. Done again it changes nothing.
    """
    from clients.agent.serving.serve import Serving
    from fleet.adapt.base import load_base

    new = Serving(state.expanduser()).add_base(file)
    data = {"digest": load_base(file).digest, "added": new}
    word = "added" if new else "is held already"
    emit(data, form, lambda console: console.print(f"{data['digest']} {word}", soft_wrap=True))


def _table(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table("digest", "model", "classes", "use", "problem")
    for row in rows:
        table.add_row(
            row["digest"][:16], row["model"], str(row["classes"]), row["use"], row["problem"]
        )
    console.print(table)
