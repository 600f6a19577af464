"""``fleet device``: which devices may come."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fleet.errors import InputError
from server.control.cli.render import Format, FormatOption, emit
from server.control.cli.server import FolderOption, folder_of
from server.service.folder import DEFAULT_FOLDER

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rich.console import Console

    from server.flower_control import Control, Node

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False)

KEY_TYPE = "ecdsa-sha2-"
REVOKED = "revoked"
# As in the configuration of a device.
NAME_LENGTH = 64


@app.callback()
def group() -> None:
    """Enrol devices, list them, and revoke them."""


@app.command(
    epilog="Examples:\n\nfleet device enroll kitchen-1.pub --name kitchen-1\n\n"
    "fleet device enroll 'ecdsa-sha2-nistp384 AAAA...' --name kitchen-1\n\nNext: fleet device list"
)
def enroll(
    key: Annotated[
        str, typer.Argument(help="Public key of the device: file node-key.pub, or its line.")
    ],
    name: Annotated[str, typer.Option("--name", help="Name of the device in the fleet.")],
    folder: FolderOption = DEFAULT_FOLDER,
    form: FormatOption = Format.table,
) -> None:
    """Let a device join: from now on its key is known."""
    from server.flower_control import public_key_of

    _check_name(name)
    public = public_key_of(_line(key))
    with _control(folder) as control:
        nodes = control.nodes()
        _check_free(nodes, name, public)
        node_id = control.enroll(public, name)
    data = {"name": name, "node": str(node_id)}
    emit(
        data,
        form,
        lambda console: console.print(f"{name} is enrolled as node {node_id}", highlight=False),
    )


@app.command("list", epilog="Examples:\n\nfleet device list\n\nfleet device list --all")
def list_(
    every: Annotated[bool, typer.Option("--all", help="Revoked ones as well.")] = False,
    folder: FolderOption = DEFAULT_FOLDER,
    form: FormatOption = Format.table,
) -> None:
    """List devices: name, state (enrolled, online, offline, revoked), when it was last seen."""
    with _control(folder) as control:
        nodes = control.nodes()
    rows = [
        {
            "name": node.name,
            "state": node.state,
            "node": str(node.node_id),
            "enrolled_at": node.enrolled_at,
            "seen_at": node.seen_at or None,
        }
        for node in nodes
        if every or node.state != REVOKED
    ]
    emit({"devices": rows}, form, lambda console: _list(console, rows))


@app.command(
    epilog="Examples:\n\nfleet device revoke kitchen-1 --dry-run\n\n"
    "fleet device revoke kitchen-1 --yes"
)
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the device.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed off a terminal.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be.")] = False,
    folder: FolderOption = DEFAULT_FOLDER,
    form: FormatOption = Format.table,
) -> None:
    """Refuse a device from now on, at once and for good: its key cannot be enrolled again."""
    with _control(folder) as control:
        node = _found(control.nodes(), name)
        told = f"{name} (node {node.node_id}, {node.state}) is refused at once; its key never again"
        if not dry_run:
            _confirm(told, name, yes)
            control.revoke(node.node_id)
    data = {"name": name, "node": str(node.node_id), "was": node.state, "dry_run": dry_run}
    done = "would be revoked" if dry_run else "is revoked"
    emit(data, form, lambda console: console.print(f"{name} {done}", highlight=False))


def _control(folder: Path) -> AbstractContextManager[Control]:
    from server.flower_control import control_of
    from server.service.config import load_config

    place = folder_of(folder)
    return control_of(load_config(place).superlink_address, place.authority)


def _line(key: str) -> bytes:
    from server.service.folder import read_bytes

    if key.startswith(KEY_TYPE):
        return key.encode()
    path = Path(key).expanduser()
    if not path.is_file():
        raise InputError(
            "public-key",
            f"there is no file {path}, and it is no public key either",
            "On the device: fleet-device enroll prints the key.",
        )
    return read_bytes(path)


def _check_name(name: str) -> None:
    plain = name.isascii() and name[:1].isalnum() and name.strip("-._").replace(" ", "") != ""
    letters = all(character.isalnum() or character in "-._" for character in name)
    if not (plain and letters and len(name) <= NAME_LENGTH):
        raise InputError(
            "device-name",
            f"a name has 1 to {NAME_LENGTH} letters, digits, . _ and -, not {name!r}",
            "Use the name of the device's own configuration.",
        )


def _check_free(nodes: list[Node], name: str, key: bytes) -> None:
    for node in nodes:
        if node.key == key:
            again = "; a revoked key stays revoked" if node.state == REVOKED else ""
            raise InputError(
                "key-known",
                f"that key is {node.name or node.node_id}'s ({node.state}){again}",
                "Make a new key on the device for another name, or see: fleet device list --all",
            )
        if node.name == name and node.state != REVOKED:
            raise InputError(
                "name-taken",
                f"{name} is enrolled already, with another key",
                f"Choose another name, or first: fleet device revoke {name}",
            )


def _found(nodes: list[Node], name: str) -> Node:
    found = [node for node in nodes if node.name == name and node.state != REVOKED]
    if not found:
        raise InputError("no-such-device", f"there is no device {name}", "See: fleet device list")
    return found[0]


def _confirm(told: str, name: str, yes: bool) -> None:
    if yes:
        return
    if sys.stdin.isatty() and typer.confirm(f"{told}. Revoke it?", err=True):
        return
    raise InputError(
        "not-confirmed", f"not confirmed: {told}", f"To do it: fleet device revoke {name} --yes"
    )


def _list(console: Console, rows: list[dict[str, Any]]) -> None:
    table = Table("name", "state", "node", "enrolled (UTC)", "seen (UTC)")
    for row in rows:
        when = [(row[key] or "never")[:19].replace("T", " ") for key in ("enrolled_at", "seen_at")]
        table.add_row(row["name"], row["state"], row["node"], *when)
    console.print(table)
