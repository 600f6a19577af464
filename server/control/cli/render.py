"""One way to print a result or an error: a table for people, one JSON envelope for scripts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from fleet.commands import SCHEMA_VERSION, Format, error_envelope, ok_envelope
from fleet.errors import FleetError

__all__ = ["SCHEMA_VERSION", "Format", "FormatOption", "emit", "emit_error", "progress_console"]


FormatOption = Annotated[
    Format, typer.Option("--format", help="A table for people or one JSON envelope for scripts.")
]


def emit(
    data: Mapping[str, Any], form: Format, table: Callable[[Console], None] | None = None
) -> None:
    """Print ``data`` to standard output: the JSON envelope, or what ``table`` draws."""
    if form is Format.json or table is None:
        sys.stdout.write(ok_envelope(data))
    else:
        table(Console())


def emit_error(error: FleetError, form: Format) -> None:
    """Print an error: rule, value and next step; the envelope goes to standard output."""
    if form is Format.json:
        sys.stdout.write(error_envelope(error))
        return
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"error [{error.code}]: {error.message}", markup=False, style="red")
    if error.hint:
        console.print(f"  {error.hint}", markup=False)


def progress_console() -> Console:
    """Return the console for progress and notes: standard error, so that pipes stay clean."""
    return Console(stderr=True)
