"""``fleet base install|list``: a server's bases; files of bases are `simulations.cli.base`'s."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.errors import InputError
from server.control import requests as r
from server.control.cli.asking import fresh_key
from server.control.cli.reaching import reaching
from server.control.cli.render import Format, FormatOption, emit
from server.control.cli.tables import draw, told
from server.control.reach import Reach

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["INSTALL_EXAMPLES", "LIST_EXAMPLES", "install", "list_"]

INSTALL_EXAMPLES = (
    "Example:\n\nfleet base install base.safetensors\n\n"
    "Next: fleet policy set base=DIGEST, with the digest that it prints; of a fleet that has "
    "releases: fleet release rebase DIGEST"
)
LIST_EXAMPLES = "Examples:\n\nfleet base list\n\nfleet base list --format json"
COLUMNS = (
    *("whole=digest", "model", "classes", "trained_on", "installed=installed (UTC)"),
    *("used_by_policy", "releases"),
)


@reaching
def install(
    reach: Reach,
    file: Annotated[Path, typer.Argument(help="A base: fleet base train --out FILE.")],
    form: FormatOption = Format.table,
) -> None:
    """Install a base on a server, for its policy to name or its fleet to move to; 16 MiB at most.

    Done again it changes nothing.
    """
    content = _read(file)
    with reach.open() as verbs:
        data = verbs.ask(r.BaseInstall(key=fresh_key(), content=content)).data
    digest, installed = data["base"]["digest"], data["base"]["installed"]

    def show(console: Console) -> None:
        told(console, f"installed {digest} (at {installed['at']}, by {installed['by']})")
        if data["base"]["used_by_policy"]:
            return
        first = f"fleet policy set base={digest} --yes"
        told(console, f"Next: {f'fleet release rebase {digest}' if data['moves'] else first}")

    emit(data, form, show)


@reaching
def list_(reach: Reach, form: FormatOption = Format.table) -> None:
    """List the bases of a server, and on which one rounds by its policy train."""
    with reach.open() as verbs:
        data = verbs.ask(r.BaseList()).data

    def show(console: Console) -> None:
        draw(console, [_row(each) for each in data["bases"]], COLUMNS)
        if not data["bases"]:
            told(console, "No base is installed. Next: fleet base install FILE")

    emit(data, form, show)


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            content = opened.read(r.LARGEST_BASE + 1)
    except OSError as error:
        raise InputError(
            "no-such-file",
            f"{file} cannot be read ({error.strerror})",
            "Make a base: fleet base train --out FILE",
        ) from error
    if not 0 < len(content) <= r.LARGEST_BASE:
        raise InputError(
            "base-size",
            f"a base that is installed has 1 to {r.LARGEST_BASE} bytes, {file} does not",
            "Make one of a smaller model or rank: fleet base train --help",
        )
    return content


def _row(base: dict[str, Any]) -> dict[str, Any]:
    return {**base, "whole": base["digest"], "model": base["problem"] or base["model"]}
