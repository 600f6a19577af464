"""``fleet operator``: certificates for those who steer a server from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.control import requests as r
from server.control.cli.asking import (
    DryRunOption,
    WhyOption,
    YesOption,
    confirmed,
    fresh_key,
    reach_of,
)
from server.control.cli.folder import FolderOption, folder_of, now
from server.control.cli.reaching import reaching
from server.control.cli.render import Format, FormatOption, emit
from server.control.cli.tables import draw, lines, told
from server.control.reach import Reach
from server.control.roles import Role
from server.control.user import user
from server.service.folder import DEFAULT_FOLDER

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)

COLUMNS = ("name", "role", "state", "issued", "expires_at=expires", "revoked", "serial")


@app.callback()
def group() -> None:
    """Make certificates for operators, list them and take them back."""


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
    from server.control.issuing import Issue, issued

    wanted = Issue(name, role, out.expanduser().absolute(), connect)
    data = issued(folder_of(folder), wanted, user(), now())
    emit(data, form, lambda console: lines(console, data, tuple(data)))


@app.command("list", epilog="Example:\n\nfleet operator list")
@reaching
def list_(reach: Reach, form: FormatOption = Format.table) -> None:
    """List all certificates: whose, for what, from when to when, and which were taken back."""
    with reach.open() as verbs:
        data = verbs.ask(r.OperatorList()).data
    emit(data, form, lambda console: draw(console, data["operators"], COLUMNS))


@app.command(
    epilog="Examples:\n\nfleet operator revoke anna --dry-run\n\n"
    "fleet operator revoke anna --why 'left us' --yes"
)
@reaching
def revoke(
    reach: Reach,
    operator: Annotated[
        str, typer.Argument(help="A serial number; or a name, for all certificates of theirs.")
    ],
    last_admin: Annotated[
        bool, typer.Option("--last-admin", help="Also when no admin's is left.")
    ] = False,
    reason: WhyOption = "",
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    form: FormatOption = Format.table,
) -> None:
    """Take certificates back for good; the control API refuses them from the next call on."""
    asked = r.OperatorRevoke(
        key=fresh_key(), operator=operator, last_admin=last_admin, why=reason, dry_run=dry_run
    )
    with reach.open() as verbs:
        data = confirmed(verbs, asked, f"revoke {operator}", yes).data
    text = f"{'would revoke' if dry_run else 'revoked'} {reach_of(data['touches'])}"
    emit(data, form, lambda console: told(console, text))
