"""``fleet policy``: how rounds are planned, who takes part, and what happens to a release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fleet.errors import InputError
from server.control import requests as r
from server.control.cli.asking import DryRunOption, WhyOption, YesOption, confirmed, fresh_key
from server.control.cli.reaching import reaching
from server.control.cli.render import Format, FormatOption, emit
from server.control.cli.tables import draw, told
from server.control.reach import Reach

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def group() -> None:
    """Show and set what the fleet is to do."""


@app.command(epilog="Example:\n\nfleet policy show")
@reaching
def show(reach: Reach, form: FormatOption = Format.table) -> None:
    """Show the policy that holds, its version, and who set it."""
    with reach.open() as verbs:
        data = verbs.ask(r.PolicyShow()).data

    def printed(console: Console) -> None:
        found = data["policy"]
        told(console, f"version {found['version']}, set by {found['set']['by']}")
        rows = [{"key": name, "value": value} for name, value in found["values"].items()]
        draw(console, rows, ("key", "value"))

    emit(data, form, printed)


@app.command(
    "set",
    epilog="Examples:\n\nfleet policy set cohort=10 quorum=8 --dry-run\n\n"
    "fleet policy set --file policy.json --why 'first policy' --yes",
)
@reaching
def set_(
    reach: Reach,
    values: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE; a value is JSON, or plain text.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="JSON object of keys and values.")] = None,
    reason: WhyOption = "",
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    form: FormatOption = Format.table,
) -> None:
    """Change keys of the policy; it holds from the next round on."""
    policy = json.dumps(_values(values or [], file))
    asked = r.PolicySet(key=fresh_key(), policy=policy, why=reason, dry_run=dry_run)
    with reach.open() as verbs:
        data = confirmed(verbs, asked, "set the policy", yes).data

    def printed(console: Console) -> None:
        rows = [{"key": name, **change} for name, change in data["changed"].items()]
        draw(console, rows, ("key", "from", "to"))
        told(console, "nothing was changed" if dry_run or not rows else "set")

    emit(data, form, printed)


def _values(pairs: list[str], file: Path | None) -> dict[str, object]:
    from server.service.folder import read_bytes

    found: dict[str, object] = {}
    try:
        read = {} if file is None else json.loads(read_bytes(file))
    except ValueError as error:
        raise InputError("bad-policy", f"{file} is no JSON: {error}", "") from error
    if not isinstance(read, dict):
        raise InputError("bad-policy", f"{file} is no JSON object", "")
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise InputError("bad-policy", f"a change is KEY=VALUE, not {pair!r}", "")
        try:
            found[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            found[name.replace("-", "_")] = value
    if not read and not found:
        raise InputError("nothing-asked", "no key is named", "Give KEY=VALUE or --file FILE.")
    return {**read, **found}
