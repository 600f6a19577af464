"""What the command lines ``fleet`` and ``fleet-device`` have in common: forms of output and ends.

Only the standard library: a device has neither the server's package nor the operator's extras.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from fleet.errors import FleetError

__all__ = [
    "SCHEMA_VERSION",
    "Format",
    "error_envelope",
    "form_asked",
    "nobody_reads",
    "ok_envelope",
]

SCHEMA_VERSION = "1"


class Format(str, Enum):
    """Output forms of every command."""

    table = "table"
    json = "json"


def ok_envelope(data: Mapping[str, Any]) -> str:
    """Return the JSON envelope of a result.

    Raises:
        ValueError: When a number is not finite, which JSON cannot say.
    """
    envelope = {"schema_version": SCHEMA_VERSION, "status": "ok", "data": data}
    return json.dumps(envelope, indent=1, allow_nan=False) + "\n"


def error_envelope(error: FleetError) -> str:
    """Return the JSON envelope of an error: rule, value and next step."""
    envelope = {
        "schema_version": SCHEMA_VERSION,
        "status": "error",
        "error_code": error.code,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    return json.dumps(envelope, indent=1) + "\n"


def form_asked(arguments: Sequence[str]) -> Format:
    """Return the form that a command line asks for, also where the rest of it is wrong."""
    for position, argument in enumerate(arguments):
        if argument == "--format=json":
            return Format.json
        if argument == "--format" and list(arguments[position + 1 : position + 2]) == ["json"]:
            return Format.json
    return Format.table


def nobody_reads() -> bool:
    """Tell whether standard output is closed, as by ``head``; any other broken pipe is a bug."""
    try:
        sys.stdout.write("")
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        return True
    return False
