"""``fleet release rebase``: the fleet moves to another base, and the command waits for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

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
from server.control.cli.reaching import reaching
from server.control.cli.render import Format, FormatOption, emit, progress_console
from server.control.cli.tables import ALIVE, quiet, told
from server.control.reach import Reach

__all__ = ["EXAMPLES", "rebase"]

EXAMPLES = (
    "Examples:\n\nfleet release rebase DIGEST --dry-run\n\n"
    "fleet release rebase DIGEST --why 'frames exhausted' --yes\n\n"
    "Before: fleet base install FILE\n\nAnd back again: fleet release rollback"
)
SHOWN = 12


@reaching
def rebase(
    reach: Reach,
    base: Annotated[str, typer.Argument(help="Digest of an installed base: fleet base list.")],
    reason: WhyOption = "",
    method: Annotated[
        str, typer.Option(help="What rounds train on it, e.g. core+head; default: as now.")
    ] = "",
    hold: Annotated[
        bool, typer.Option("--hold", help="Make the release and do not promote it.")
    ] = False,
    another_network: Annotated[
        bool,
        typer.Option(
            "--another-network", help="Also when it serves something else than the release."
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds to wait for the service; then exit code 3.")
    ] = 600.0,
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    form: FormatOption = Format.table,
) -> None:
    """Move the fleet to another base: a release of it, that goes on from the fleet's own.

    The service does it between rounds; devices that lack the base are sent it.
    """
    from server.control.waiting import finished_order, last_row

    asked = r.ReleaseRebase(
        key=fresh_key(),
        base=base.lower(),
        method=method,
        hold=hold,
        another_network=another_network,
        why=reason,
        dry_run=dry_run,
    )
    what = f"{'hold a release of' if hold else 'move the fleet to'} base {base[:SHOWN]}…"
    with reach.open() as verbs:
        seen = last_row(verbs)
        data = dict(confirmed(verbs, asked, what, yes).data)
        data["result"] = None
        if not dry_run and data["service"] == ALIVE:
            number = data["order"]["id"]
            if data["open_rounds"]:
                note = f"order {number} is taken when round {data['open_rounds'][0]} is closed"
                progress_console().print(note, highlight=False, soft_wrap=True)
            with progress_console().status(f"waiting for order {number}"):
                data["result"] = finished_order(verbs, number, seen, timeout)
    emit(data, form, lambda console: told(console, _told(data)))


def _told(data: Mapping[str, Any]) -> str:
    """Return what came of it in words."""
    result = data["result"]
    what = _what(data)
    if data["dry_run"]:
        return f"{what}\nwould touch {reach_of(data['touches'])}"
    if result is None:
        return f"{what}\nordered (order {data['order']['id']}); {quiet(data, 'the order waits')}"
    made = f"release {result['release']} of base {result['base'][:SHOWN]}… was made"
    policy = "" if data["method"] == data["from_method"] else _policy(data)
    if result["promoted"]:
        return f"{what}\n{made} and is the fleet's\nNext: {policy}fleet device list"
    return f"{what}\n{made}, not promoted\nNext: {policy}fleet release promote {result['release']}"


def _policy(data: Mapping[str, Any]) -> str:
    """Return the command without which no round trains by another method."""
    return f"fleet policy set method={data['method']} --yes; "


def _what(data: Mapping[str, Any]) -> str:
    before = f"release {data['from_release']} of base {data['from_base'][:SHOWN]}…"
    labels = ", ".join(data["new_labels"])
    new = f", new classes: {labels}" if labels else ""
    if labels and not data["learns_classes"]:
        new += f" (which {data['method']} does not learn: --method {data['method']}+head)"
    if data["kind"] == "grown":
        return f"grown from {before}{new}"
    far = data["difference"]
    apart = "another architecture" if far is None else f"largest relative difference {far:.3g}"
    return f"rebased from {before}{new}; {apart}"
