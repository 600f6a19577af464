"""One way to print a result or an error: a table for people, one JSON envelope for scripts.

The forms are those of the operator's command ``fleet`` (a test holds them together); a device does
not have the server's package, so it has its own printer.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet.commands import SCHEMA_VERSION, Format, error_envelope, ok_envelope
from fleet.errors import FleetError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "DEFAULT_STATE",
    "SCHEMA_VERSION",
    "Format",
    "FormatOption",
    "StateOption",
    "emit",
    "emit_error",
    "note",
]

_SHOWN_STATE = "~/.local/state/corefleet"
DEFAULT_STATE = Path(os.path.expanduser(_SHOWN_STATE))


FormatOption = Annotated[
    Format, typer.Option("--format", help="A table for people or one JSON envelope for scripts.")
]

StateOption = Annotated[
    Path,
    typer.Option(
        "--state",
        envvar="COREFLEET_STATE",
        metavar="DIR",
        help="State directory of the device.",
        show_default=_SHOWN_STATE,
    ),
]


def emit(
    data: Mapping[str, Any], form: Format, table: Callable[[Console], None] | None = None
) -> None:
    """Print ``data`` to standard output: the JSON envelope, or what ``table`` draws."""
    if form is Format.json or table is None:
        sys.stdout.write(ok_envelope(data))
        return
    from rich.console import Console

    table(Console(highlight=False))


def emit_error(error: FleetError, form: Format) -> None:
    """Print an error: rule, value and next step; the envelope goes to standard output."""
    if form is Format.json:
        sys.stdout.write(error_envelope(error))
        return
    note(f"error [{error.code}]: {error.message}", style="red")
    if error.hint:
        note(f"  {error.hint}")


def note(text: str, style: str = "") -> None:
    """Print a line to standard error, so that pipes stay clean."""
    from rich.console import Console

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(text, markup=False, style=style or None)
