"""``fleet device``: which devices may come, and how they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
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
from server.control.cli.tables import draw, lines, quiet, told
from server.control.reach import Reach

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)

KEY_TYPE = "ecdsa-sha2-"
COLUMNS = (
    "name",
    "state",
    "link",
    "serves",
    "should_serve",
    "in_step",
    "tags",
    "seen_at=seen (UTC)",
)
DETAILS = (
    *("name", "state", "tags", "serves", "should_serve", "in_step", "pinned", "seen_at"),
    *("unable", "version", "train_windows", "enrolled", "quarantined", "revoked", "fingerprint"),
)
Name = Annotated[str, typer.Argument(help="Name of the device.")]
Tags = Annotated[list[str] | None, typer.Option(help="A tag; repeatable.")]


@app.callback()
def group() -> None:
    """Enrol devices, look at them, keep them out and let them in again."""


@app.command(
    "list", epilog="Examples:\n\nfleet device list\n\nfleet device list --tag kitchen --all"
)
@reaching
def list_(
    reach: Reach,
    tag: Annotated[str, typer.Option(help="Only those with this tag.")] = "",
    state: Annotated[str, typer.Option(help="Only these: enrolled, quarantined or revoked.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Revoked ones as well.")] = False,
    form: FormatOption = Format.table,
) -> None:
    """List devices: state, link (online, offline), what each serves and should serve."""
    with reach.open() as verbs:
        data = verbs.ask(r.DeviceList(tag=tag, state=_state(state), revoked=every)).data

    def printed(console: Console) -> None:
        draw(console, data["devices"], COLUMNS)
        # One that never ran is no news: a server without rounds of its own has devices too.
        if data["service_ran"] and (warning := quiet(data, "this is how they were")):
            told(console, warning)

    emit(data, form, printed)


@app.command(epilog="Example:\n\nfleet device show kitchen-1")
@reaching
def show(reach: Reach, device: Name, form: FormatOption = Format.table) -> None:
    """Show one device: who it is, what it said last, who decided what about it."""
    with reach.open() as verbs:
        data = verbs.ask(r.DeviceShow(device=device)).data
    emit(data, form, lambda console: lines(console, data["device"], DETAILS))


@app.command(epilog="Example:\n\nfleet device why kitchen-1")
@reaching
def why(reach: Reach, device: Name, form: FormatOption = Format.table) -> None:
    """Tell in one sentence why a device took part in the last round or not, and what it serves."""
    with reach.open() as verbs:
        data = verbs.ask(r.DeviceWhy(device=device)).data
    emit(data, form, lambda console: told(console, data["sentence"]))


@app.command(
    epilog="Examples:\n\nfleet device quarantine kitchen-1 --why 'sensor loose' --dry-run\n\n"
    "fleet device quarantine kitchen-1 --why 'sensor loose' --yes"
)
@reaching
def quarantine(
    reach: Reach,
    device: Name,
    reason: WhyOption = "",
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    form: FormatOption = Format.table,
) -> None:
    """Keep a device out of rounds; it still gets releases."""
    asked = r.DeviceQuarantine(key=fresh_key(), device=device, why=reason, dry_run=dry_run)
    with reach.open() as verbs:
        data = confirmed(verbs, asked, f"quarantine {device}", yes).data
    done = "would be" if dry_run else "is"
    text = f"{device} {done} in quarantine; {_reach(data, dry_run)}"
    emit(data, form, lambda console: told(console, text))


@app.command(epilog="Example:\n\nfleet device readmit kitchen-1 --why 'sensor fixed'")
@reaching
def readmit(
    reach: Reach, device: Name, reason: WhyOption = "", form: FormatOption = Format.table
) -> None:
    """Let a device that is in quarantine take part again."""
    with reach.open() as verbs:
        data = verbs.ask(r.DeviceReadmit(key=fresh_key(), device=device, why=reason)).data
    emit(data, form, lambda console: told(console, f"{device} may take part again"))


@app.command(
    epilog="Examples:\n\nfleet device enroll kitchen-1.pub --name kitchen-1 --tag kitchen\n\n"
    "fleet device enroll 'ecdsa-sha2-nistp384 AAAA...' --name kitchen-1\n\nNext: fleet device list"
)
@reaching
def enroll(
    reach: Reach,
    public_key: Annotated[
        str, typer.Argument(help="Public key of the device: file node-key.pub, or its line.")
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the device in the fleet.")],
    tag: Tags = None,
    reason: WhyOption = "",
    form: FormatOption = Format.table,
) -> None:
    """Let a device join: from now on its key is known."""
    from server.control.verbs.devices import checked_name

    checked_name(name)
    asked = r.DeviceEnroll(
        key=fresh_key(),
        device=name,
        public_key=_line(public_key),
        tags=tuple(tag or ()),
        why=reason,
    )
    with reach.open() as verbs:
        data = verbs.ask(asked).data
    text = f"{name} is enrolled" + (f" as node {data['node']}" if data["node"] else "")
    if data.get("release_key"):
        text += (
            "\nNext, on the device: fleet-device run"
            " (before it, if its init had no --release-key: fleet-device trust release-key.pub)"
        )
    emit(data, form, lambda console: told(console, text))


@app.command(
    epilog="Examples:\n\nfleet device revoke kitchen-1 --dry-run\n\n"
    "fleet device revoke kitchen-1 --why stolen --yes"
)
@reaching
def revoke(
    reach: Reach,
    device: Name,
    reason: WhyOption = "",
    yes: YesOption = False,
    dry_run: DryRunOption = False,
    form: FormatOption = Format.table,
) -> None:
    """Refuse a device from now on, at once and for good: its key cannot be enrolled again."""
    asked = r.DeviceRevoke(key=fresh_key(), device=device, why=reason, dry_run=dry_run)
    with reach.open() as verbs:
        data = confirmed(verbs, asked, f"revoke {device}", yes).data
    done = "would be revoked" if dry_run else "is revoked"
    text = f"{device} {done}; {_reach(data, dry_run)}"
    emit(data, form, lambda console: told(console, text))


@app.command(epilog="Example:\n\nfleet device tag kitchen-1 --add kitchen --remove attic")
@reaching
def tag(
    reach: Reach,
    device: Name,
    add: Tags = None,
    remove: Tags = None,
    form: FormatOption = Format.table,
) -> None:
    """Put tags on a device and take others off."""
    asked = r.DeviceTag(
        key=fresh_key(), device=device, add=tuple(add or ()), remove=tuple(remove or ())
    )
    with reach.open() as verbs:
        data = verbs.ask(asked).data
    text = f"{device} has the tags {', '.join(data['device']['tags']) or '-'}"
    emit(data, form, lambda console: told(console, text))


def _reach(data: Mapping[str, Any], dry_run: bool) -> str:
    """Return what was touched, and that no round can open any more where that is so."""
    text = f"{'would touch' if dry_run else 'touched'} {reach_of(data['touches'])}"
    if data["shortage"]:
        text += f"\nWARNING: {data['shortage']['sentence']}; next: {data['shortage']['next']}"
    return text


def _state(state: str) -> str:
    if state not in ("", "enrolled", "quarantined", "revoked"):
        raise InputError(
            "device-state", f"a device is enrolled, quarantined or revoked, not {state!r}", ""
        )
    return state


def _line(key: str) -> str:
    """Return a public key's line, which may be in a file."""
    from server.flower_control import public_key_of
    from server.service.folder import read_bytes

    path = Path(key).expanduser()
    if not key.startswith(KEY_TYPE) and not path.is_file():
        raise InputError(
            "public-key",
            f"there is no file {path}, and it is no public key either",
            "On the device: fleet-device enroll prints the key.",
        )
    line = key.encode() if key.startswith(KEY_TYPE) else read_bytes(path)
    public_key_of(line)
    return line.decode().strip()
