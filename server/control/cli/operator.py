"""``fleet operator``: certificates for those who steer a server from elsewhere."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from server.control.cli.render import Format, FormatOption, emit
from server.control.cli.server import FolderOption, folder_of
from server.control.cli.tables import lines
from server.control.roles import Role
from server.service.folder import DEFAULT_FOLDER

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def group() -> None:
    """Make certificates for operators."""


@app.command(
    epilog="Examples:\n\nfleet operator issue anna --role operator --out anna "
    "--connect fleet.example:9443\n\nNext: fleet device list"
)
def issue(
    name: Annotated[str, typer.Argument(help="As the audit will name them.")],
    role: Annotated[Role, typer.Option(help="viewer reads, operator looks after, admin enrols.")],
    out: Annotated[Path, typer.Option(help="Folder for certificate, key, root and profile.")],
    connect: Annotated[
        str, typer.Option(help="HOST:PORT by which they reach the control API.")
    ] = "",
    folder: FolderOption = DEFAULT_FOLDER,
    form: FormatOption = Format.table,
) -> None:
    """Make a key and a certificate for an operator; only on the server's own machine."""
    from server.control.issuing import issued

    now = datetime.now().astimezone()
    data = issued(folder_of(folder), name, role, out.expanduser().absolute(), connect, now)
    emit(data, form, lambda console: lines(console, data, tuple(data)))
