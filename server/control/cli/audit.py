"""``fleet audit``: who did what."""

from __future__ import annotations

from typing import Annotated

import typer

from server.control import requests as r
from server.control.cli.reaching import reaching
from server.control.cli.render import Format, FormatOption, emit
from server.control.cli.tables import draw, told
from server.control.reach import Reach

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)

COLUMNS = ("seq", "at=at (UTC)", "actor", "verb", "subject", "detail")


@app.callback()
def group() -> None:
    """Read who did what, and check that nobody changed it since."""


@app.command(
    "list",
    epilog="Examples:\n\nfleet audit list\n\nfleet audit list --subject kitchen-1 --newest 10",
)
@reaching
def list_(
    reach: Reach,
    subject: Annotated[
        str,
        typer.Option(help="Only about this device, alone or among others, 'round N', 'release N'."),
    ] = "",
    newest: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 50,
    before: Annotated[int | None, typer.Option(min=1, help="Only rows before this one.")] = None,
    form: FormatOption = Format.table,
) -> None:
    """List the newest rows, in the order in which they came."""
    asked = r.AuditList(subject=subject, newest=newest, before=before)
    with reach.open() as verbs:
        data = verbs.ask(asked).data
    emit(data, form, lambda console: draw(console, data["rows"], COLUMNS))


@app.command(epilog="Examples:\n\nfleet audit verify\n\nfleet audit verify --seq 120 --hash HASH")
@reaching
def verify(
    reach: Reach,
    seq: Annotated[int, typer.Option(min=0, help="A row that was written down before.")] = 0,
    hash_: Annotated[str, typer.Option("--hash", help="Its hash.")] = "",
    form: FormatOption = Format.table,
) -> None:
    """Follow the whole chain; write its end down to show later that nothing was cut off."""
    with reach.open() as verbs:
        data = verbs.ask(r.AuditVerify(seq=seq, hash=hash_)).data
    text = f"sound up to row {data['seq']}\nhash {data['hash']}"
    if data["written_down"] is not None:
        text += f"\nrow {data['written_down']} is the one that you wrote down"
    emit(data, form, lambda console: told(console, text))
