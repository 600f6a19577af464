"""``fleet round``: what was asked of devices and what they answered."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.errors import InputError
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
from server.control.cli.render import Format, FormatOption, emit
from server.control.cli.tables import draw, lines, quiet, room, table, told
from server.control.reach import Reach

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from server.control.seam import Event

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)

COLUMNS = (
    *("round", "attempt", "state", "starts_from", "release", "asked", "accepted", "refused"),
    *("seconds", "opened=opened (UTC)"),
)
DETAILS = (
    *("round", "attempt", "state", "starts_from", "release", "asked", "accepted", "refused"),
    *("unanswered", "opened", "deadline_at", "closed", "seconds", "plan", "rule", "traffic"),
)
NEWS_SHOWN = 10
Number = Annotated[int | None, typer.Argument(help="Its number; without it the last one.")]
Newest = Annotated[int, typer.Option(min=1, max=1000, help="How many.")]


@app.callback()
def group() -> None:
    """List, show, watch, order, abort and recompute rounds."""


@app.command("list", epilog="Example:\n\nfleet round list --newest 20")
@reaching
def list_(reach: Reach, newest: Newest = 20, form: FormatOption = Format.table) -> None:
    """List the newest rounds, every attempt."""
    with reach.open() as verbs:
        data = verbs.ask(r.RoundList(newest=newest)).data

    def printed(console: Console) -> None:
        draw(console, data["rounds"], COLUMNS)
        _failed(console, data["order"])

    emit(data, form, printed)


@app.command(epilog="Examples:\n\nfleet round show\n\nfleet round show 8 --attempt 1")
@reaching
def show(
    reach: Reach,
    number: Number = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Not the last attempt.")] = None,
    form: FormatOption = Format.table,
) -> None:
    """Show a round: its plan, its rule, and what each device answered."""
    with reach.open() as verbs:
        data = verbs.ask(r.RoundShow(round=number, attempt=attempt)).data

    def printed(console: Console) -> None:
        _show(console, data["round"])
        _failed(console, data["order"])

    emit(data, form, printed)


@app.command(epilog="Examples:\n\nfleet round watch\n\nfleet round watch --limit 60 --format json")
@reaching
def watch(
    reach: Reach,
    limit: Annotated[float, typer.Option(min=0, help="Seconds until it ends; 0: Ctrl-C.")] = 0.0,
    after: Annotated[
        int | None, typer.Option(min=0, help="Go on after this row of the audit.")
    ] = None,
    form: FormatOption = Format.table,
) -> None:
    """Watch rounds, devices and releases as they change; with --format json one event per line."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.live import Live

    from server.control.waiting import watched

    with reach.open() as verbs:
        if form is Format.json:
            for event in watched(verbs, after, limit):
                sys.stdout.write(json.dumps(asdict(event)) + "\n")
                sys.stdout.flush()
            return
        news: list[Event] = []
        with Live(console=room(Console()), auto_refresh=False) as live:
            for event in watched(verbs, after, limit):
                news = [*news, event][-NEWS_SHOWN:] if event.verb else news
                rounds = verbs.ask(r.RoundList(newest=3)).data["rounds"]
                live.update(_news(rounds, news), refresh=True)


@app.command(epilog="Examples:\n\nfleet round wait 8 --timeout 600\n\nfleet round wait --after 7")
@reaching
def wait(
    reach: Reach,
    number: Annotated[
        int | None,
        typer.Argument(help="Its number; without it the one ordered last, or else the next."),
    ] = None,
    after: Annotated[
        int | None, typer.Option(min=0, help="The first of a higher number than this.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds; then exit code 3.")] = 600.0,
    form: FormatOption = Format.table,
) -> None:
    """Wait until a round is released: 0 when it is, 1 when it was abandoned, 3 when time is up.

    One that is closed already is not waited for. It ends with 1 as well, and at once, when the
    newest order for a round failed.
    """
    from server.control.waiting import closed_round

    if number is not None and after is not None:
        raise InputError("one-of-both", "a round is waited for by its number or --after", "")
    with reach.open() as verbs:
        data = {"round": closed_round(verbs, number, timeout, after=after)}
    found = data["round"]
    text = f"round {found['round']} made release {found['release']}"
    emit(data, form, lambda console: told(console, text))


@app.command(epilog="Example:\n\nfleet round start --why 'new data'\n\nNext: fleet round wait 9")
@reaching
def start(reach: Reach, reason: WhyOption = "", form: FormatOption = Format.table) -> None:
    """Order a round now; the service opens it. Prints its number, for `fleet round wait`."""
    with reach.open() as verbs:
        data = verbs.ask(r.RoundStart(key=fresh_key(), why=reason)).data
    text = f"round {data['round']} is {_ordered(data)}"
    text += "\n" + (quiet(data, "the order waits") or f"next: {data['next']}")
    emit(data, form, lambda console: told(console, text))


@app.command(
    epilog="Examples:\n\nfleet round abort --dry-run\n\nfleet round abort --why stuck --yes"
)
@reaching
def abort(
    reach: Reach,
    reason: WhyOption = "",
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    form: FormatOption = Format.table,
) -> None:
    """Order that the open round ends without a release; what came for it stays in the registry."""
    asked = r.RoundAbort(key=fresh_key(), why=reason, dry_run=dry_run)
    with reach.open() as verbs:
        data = confirmed(verbs, asked, "abort the open round", yes).data
    touches = reach_of(data["touches"])
    text = f"would touch {touches}"
    if not dry_run:
        text = f"{_ordered(data)}; touched {touches}\n{quiet(data, 'the order waits')}".rstrip()
    emit(data, form, lambda console: told(console, text))


@app.command(
    epilog="Examples:\n\nfleet round replay 8\n\n"
    "fleet round replay 8 --rule median --without kitchen-1"
)
@reaching
def replay(
    reach: Reach,
    number: Annotated[int, typer.Argument(min=1, help="Its number.")],
    without: Annotated[
        list[str] | None, typer.Option(help="Leave out a device's update; repeatable.")
    ] = None,
    rule: Annotated[
        str, typer.Option(help="Another rule: median, trimmed:0.2, krum:1; docs/aggregation.md.")
    ] = "",
    form: FormatOption = Format.table,
) -> int:
    """Recompute a round's release from its stored updates; nothing is written.

    Tells how far what it comes to is from the recorded release. Exits with 1 when all updates by
    the round's own rule give another digest than the release has.
    """
    asked = r.RoundReplay(round=number, without=tuple(without or ()), rule=rule)
    with reach.open() as verbs:
        data = verbs.ask(asked).data
    emit(data, form, lambda console: _replayed(console, data))
    return int(not data["same"] and not data["without"] and data["rule"] == data["recorded_rule"])


def _replayed(console: Console, data: Mapping[str, Any]) -> None:
    verdict = "the same release" if data["same"] else "another release"
    told(console, f"{verdict}, of {len(data['devices'])} devices")
    apart = data["distance"]
    cosine = "-" if apart["cosine"] is None else f"{apart['cosine']:.6f}"
    rows = [
        {"release": "recorded", "whole": data["recorded"], "rule": data["recorded_rule"]},
        {"release": "replayed", "whole": data["digest"], "rule": data["rule"]},
    ]
    draw(console, rows, ("release", "whole=digest", "rule"))
    told(console, f"largest difference of an entry  {apart['largest']:.3g}")
    told(console, f"cosine of the two steps         {cosine}")


def _show(console: Console, found: dict[str, Any]) -> None:
    lines(console, found, DETAILS)
    draw(console, found["updates"], ("device", "weight", "norm", "digest", "arrived_at"))
    if found["refusals"]:
        draw(console, found["refusals"], ("device", "reason", "detail", "earlier", "at"))


def _failed(console: Console, order: Mapping[str, Any] | None) -> None:
    """Tell of an order that no round came of, which a list of rounds cannot show."""
    if order is not None and order["stands"]:
        told(console, f"order {order['id']} for the next round failed: {order['error']}")


def _news(rounds: list[dict[str, Any]], news: list[Event]) -> RenderableType:
    from rich.console import Group

    rows = [{"at": e.at, "actor": e.actor, "verb": e.verb, "subject": e.subject} for e in news]
    return Group(table(rounds, COLUMNS), table(rows, ("at=at (UTC)", "actor", "verb", "subject")))


def _ordered(data: Mapping[str, Any]) -> str:
    alive = data["service_alive_at"]
    there = f"the service was alive at {alive}" if alive else "no service has run yet"
    return f"ordered ({data['order']['verb']}, order {data['order']['id']}); {there}"
