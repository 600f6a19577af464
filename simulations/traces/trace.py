"""A trace: one file that says when devices are there, how fast they are and what goes wrong.

Figures of the traces that come with the package stand in their files, each with its source; what
is assumed says so. ``docs/traces.md`` shows them and how to write another.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import tomllib
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fleet.errors import InputError
from fleet.federate.records import problems_of
from simulations.traces.availability import Availability

__all__ = [
    "DeviceClass",
    "Faults",
    "Trace",
    "parse_trace",
    "trace_names",
    "trace_place",
    "trace_text",
]

# Shares are written by hand, e.g. 0.333.
SHARES_TOLERANCE = 0.01
# A trace is a page of text; a file by that name may be anything.
LARGEST_FILE = 1_000_000


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DeviceClass(_Record):
    """Devices of one kind; ``inf`` is allowed for what takes no time.

    Args:
        name: Name of the class.
        share: Share of the fleet's devices.
        train_windows_per_s: Windows trained per second, forward and backward.
        judge_windows_per_s: Windows judged per second, forward only.
        down_bytes_per_s: Bandwidth to the device.
        up_bytes_per_s: Bandwidth from the device.
        latency_s: Seconds that any message is on its way besides, each way.
        source: Where the figures are from, and what is assumed.
    """

    name: str = Field(min_length=1)
    share: float = Field(gt=0, le=1)
    train_windows_per_s: float = Field(gt=0, allow_inf_nan=True)
    judge_windows_per_s: float = Field(gt=0, allow_inf_nan=True)
    down_bytes_per_s: float = Field(gt=0, allow_inf_nan=True)
    up_bytes_per_s: float = Field(gt=0, allow_inf_nan=True)
    latency_s: float = Field(ge=0)
    source: str = Field(min_length=1)


class Faults(_Record):
    """What goes wrong between server and devices.

    Args:
        lost_down: Share of messages that never reach their device.
        lost_up: Share of answers that never reach the server.
        doubled: Share of answers that reach it twice.
        source: Where the figures are from, or that they are assumed.
    """

    lost_down: float = Field(default=0.0, ge=0, lt=1)
    lost_up: float = Field(default=0.0, ge=0, lt=1)
    doubled: float = Field(default=0.0, ge=0, le=1)
    source: str = Field(min_length=1)


class Trace(_Record):
    """One trace.

    Args:
        about: One sentence for people.
        availability: A device is online while all of these say so.
        device: Classes of devices; their shares add up to 1.
        faults: What goes wrong; nothing where it is left out.
    """

    about: str = Field(min_length=1)
    availability: tuple[Availability, ...] = Field(min_length=1, max_length=8)
    device: tuple[DeviceClass, ...] = Field(min_length=1, max_length=100)
    faults: Faults = Faults(source="nothing goes wrong")

    @model_validator(mode="after")
    def _shares_are_whole(self) -> Trace:
        total = sum(each.share for each in self.device)
        if abs(total - 1) > SHARES_TOLERANCE:
            raise ValueError(f"the shares of all devices add up to 1, not {total:g}")
        return self


def trace_names() -> list[str]:
    """Return the names of the traces that come with the package, sorted."""
    found = (Path(each.name) for each in _shipped().iterdir())
    return sorted(each.stem for each in found if each.suffix == ".toml")


def trace_place(name_or_path: str) -> str:
    """Return what names the same trace from any folder: one of the package's, or a whole path.

    The package's own come first, so that a file of such a name is named with its folder.
    """
    return name_or_path if name_or_path in trace_names() else str(Path(name_or_path).resolve())


def trace_text(name_or_path: str) -> str:
    """Return a trace's text, of the package's own or of a file.

    Raises:
        InputError: ``unknown-trace`` when there is neither, ``bad-trace`` when it is no text.
    """
    path = Path(trace_place(name_or_path))
    if not path.is_absolute():
        return str((_shipped() / f"{path}.toml").read_text(encoding="utf-8"))
    if not path.is_file():
        raise InputError(
            "unknown-trace",
            f"there is no trace and no file {name_or_path!r}; known: {', '.join(trace_names())}",
            "Name one of these or a file; docs/traces.md shows how to write one.",
        )
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE:,} bytes")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _bad(name_or_path, str(error)) from error


def parse_trace(text: str, name: str) -> Trace:
    """Read a trace.

    Args:
        text: TOML.
        name: What to call it in errors.

    Raises:
        InputError: ``bad-trace``, listing every problem at once.
    """
    try:
        values: dict[str, Any] = tomllib.loads(text)
        return Trace.model_validate(values)
    except tomllib.TOMLDecodeError as error:
        raise _bad(name, f"no TOML: {error}") from error
    except ValidationError as error:
        raise _bad(name, problems_of(error)) from error


def _bad(name: str, problem: str) -> InputError:
    return InputError(
        "bad-trace",
        f"the trace {name} breaks a rule: {problem}",
        "docs/traces.md lists the fields and their ranges.",
    )


def _shipped() -> Any:
    return resources.files("simulations.traces") / "shipped"
