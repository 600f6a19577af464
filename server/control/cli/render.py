"""One way to print a result or an error: a table for people, one JSON envelope for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import Console

from fleet.errors import FleetError

__all__ = ["SCHEMA_VERSION", "Format", "FormatOption", "emit", "emit_error", "progress_console"]

SCHEMA_VERSION = "1"


class Format(str, Enum):
    """Output forms of every command."""

    table = "table"
    json = "json"


FormatOption = Annotated[
    Format, typer.Option("--format", help="A table for people or one JSON envelope for scripts.")
]


def emit(
    data: Mapping[str, Any], form: Format, table: Callable[[Console], None] | None = None
) -> None:
    """Print ``data`` to standard output: the JSON envelope, or what ``table`` draws."""
    if form is Format.json or table is None:
        envelope = {"schema_version": SCHEMA_VERSION, "status": "ok", "data": data}
        sys.stdout.write(json.dumps(envelope, indent=1, allow_nan=False) + "\n")
    else:
        table(Console())


def emit_error(error: FleetError, form: Format) -> None:
    """Print an error: rule, value and next step; the envelope goes to standard output."""
    if form is Format.json:
        envelope = {
            "schema_version": SCHEMA_VERSION,
            "status": "error",
            "error_code": error.code,
            "message": error.message,
            "hint": error.hint,
            "exit_code": error.exit_code,
        }
        sys.stdout.write(json.dumps(envelope, indent=1) + "\n")
        return
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"error [{error.code}]: {error.message}", markup=False, style="red")
    if error.hint:
        console.print(f"  {error.hint}", markup=False)


def progress_console() -> Console:
    """Return the console for progress and notes: standard error, so that pipes stay clean."""
    return Console(stderr=True)
