"""A scenario: what happens to a fleet over months, read from a small TOML file."""

from __future__ import annotations

import math
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from fleet.continual.events import (
    LARGEST_PERIODS,
    Classes,
    Event,
    Join,
    Leave,
    Record,
    ShiftEvent,
)
from fleet.errors import InputError
from fleet.federate.records import problems_of
from fleet.har.shifts import KINDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Day", "Scenario", "devices_of", "load_scenario", "parse_scenario", "shipped"]

LARGEST_FILE = 256 * 1024
LARGEST_EVENTS = 100
MIN_START_CLASSES = 2
PLACE = "scenarios"


class Day(Record):
    """The hours of a day in which a device may take part.

    A period counts when its middle lies in them.

    Args:
        starts_h: Local hour at which they begin.
        hours: How many.
        zones_h: Width of the fleet's time zones; each device has one of its own.
    """

    starts_h: float = Field(ge=0, lt=24)
    hours: float = Field(gt=0, le=24)
    zones_h: float = Field(0.0, ge=0, le=24)


class Scenario(Record):
    """What happens to a fleet, period by period; of no data set in particular.

    Args:
        name: What it is called in tables and plots.
        about: One sentence for people.
        periods: How many; a period is one federated round.
        period_hours: Hours of a period.
        devices: Devices of the fleet, those included that join later.
        windows_per_period: Windows that a device sees in a period.
        test_windows_per_period: Windows of a period on which it is measured.
        label_fraction: Share of the windows that ever get a label.
        label_delay: Periods until a label is known; 0 for in time for the round of its period.
        online: Share of periods in which a device can take part in the round.
        day: Hours of the day in which it can, where a period is shorter than a day.
        start_classes: Classes that are there at the start; 0 for all.
        class_order: Labels in the order in which they appear; those left out follow in the order
            of the data set.
        events: What changes.

    Raises:
        ValidationError: by pydantic; :func:`load_scenario` turns it into an ``InputError``.
    """

    name: str = Field(min_length=1, max_length=64)
    about: str = Field(min_length=1, max_length=400)
    periods: int = Field(ge=1, le=LARGEST_PERIODS)
    period_hours: float = Field(24.0, gt=0, le=8784)
    devices: int = Field(ge=1, le=100_000)
    windows_per_period: int = Field(60, ge=1, le=10_000)
    test_windows_per_period: int = Field(30, ge=1, le=10_000)
    label_fraction: float = Field(1.0, ge=0, le=1)
    label_delay: int = Field(0, ge=0, le=LARGEST_PERIODS)
    online: float = Field(1.0, gt=0, le=1)
    day: Day | None = None
    start_classes: int = Field(0, ge=0, le=1000)
    class_order: tuple[str, ...] = Field((), max_length=1000)
    events: tuple[Event, ...] = Field((), max_length=LARGEST_EVENTS)

    @model_validator(mode="after")
    def _makes_sense(self) -> Scenario:
        problems = [
            *(
                f"events.{number}: at must lie before the end ({self.periods}), not at {event.at}"
                for number, event in enumerate(self.events)
                if event.at >= self.periods
            ),
            *_class_problems(self),
            *_member_problems(self),
            *_size_problems(self),
        ]
        if self.day is not None and self.period_hours >= 24:
            problems.append(f"day needs periods of less than 24 hours, not {self.period_hours:g}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def devices_of(share: float, devices: int) -> int:
    """Return how many devices a share is: the nearest number, but at least one.

    >>> [devices_of(share, 12) for share in (0.01, 0.5, 0.75, 1.0)]
    [1, 6, 9, 12]
    """
    return max(1, math.floor(share * devices + 0.5))


def shipped() -> tuple[str, ...]:
    """Return the names of the scenarios that come with the package, sorted."""
    names = (each.name for each in _folder().iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def load_scenario(name_or_path: str) -> Scenario:
    """Read a scenario of the package's own, or of a file.

    The package's own come first; a file of such a name is named with its folder.

    Raises:
        InputError: ``no-such-scenario`` when there is neither; ``bad-scenario`` for a file that
            breaks rules, listing all of them.
    """
    if name_or_path in shipped():
        text = str((_folder() / f"{name_or_path}.toml").read_text(encoding="utf-8"))
        return parse_scenario(text, name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        raise InputError(
            "no-such-scenario",
            f"there is no scenario and no file {name_or_path!r}; known: {', '.join(shipped())}",
            "Name one of these or a file; docs/scenarios.md shows how to write one.",
        )
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE:,} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise _bad(name_or_path, str(error)) from error
    return parse_scenario(text, name_or_path)


def parse_scenario(text: str, name: str) -> Scenario:
    """Read a scenario.

    Args:
        text: TOML.
        name: What to call it in errors.

    Raises:
        InputError: ``bad-scenario``, listing every problem.
    """
    try:
        return Scenario.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise _bad(name, f"no TOML: {error}") from error
    except ValidationError as error:
        raise _bad(name, problems_of(error)) from error


def _class_problems(scenario: Scenario) -> list[str]:
    problems = []
    order, start = scenario.class_order, scenario.start_classes
    if len(set(order)) != len(order):
        problems.append(f"class_order names a class once, not {list(order)}")
    if 0 < start < MIN_START_CLASSES:
        problems.append(f"start_classes must be 0 or at least {MIN_START_CLASSES}, not {start}")
    events = sorted((e for e in scenario.events if isinstance(e, Classes)), key=lambda e: e.at)
    if events and not start:
        problems.append("start_classes is 0, all, so none is left for an event of classes")
    if any(event.count == 0 for event in events[:-1]):
        problems.append("no classes are left after an event with count 0, all that are left")
    return problems


def _member_problems(scenario: Scenario) -> list[str]:
    problems, devices = [], scenario.devices
    joins = [e for e in scenario.events if isinstance(e, Join)]
    joining = sum(devices_of(join.share, devices) for join in joins)
    if joining > devices:
        problems.append(f"{joining} devices would join, but there are {devices}")
    gone = 0
    for leave in sorted((e for e in scenario.events if isinstance(e, Leave)), key=lambda e: e.at):
        later = sum(devices_of(join.share, devices) for join in joins if join.at >= leave.at)
        gone += devices_of(leave.share, devices)
        if gone > devices - later:
            there = f"{max(devices - later, 0)} have joined before period {leave.at}"
            problems.append(f"{gone} devices would have left, but only {there}")
    return problems


def _size_problems(scenario: Scenario) -> list[str]:
    """Hold the sums of what may meet at one device to the ranges of the kinds."""
    events = [event for event in scenario.events if isinstance(event, ShiftEvent)]
    # Sizes change linearly in between, so a sum is largest where something begins, ends or is full.
    marks = {mark for e in events for mark in (e.at, e.until or e.at, (e.ends or 1) - 1)}
    problems: dict[str, str] = {}
    for period in sorted(min(mark, scenario.periods - 1) for mark in marks):
        sums: dict[str, float] = {}
        for event in events:
            for kind, size in event.pieces:
                sums[kind] = sums.get(kind, 0.0) + size * event.grown(period)
        for kind, size in sums.items():
            try:
                KINDS[kind](size)
            except InputError as error:
                problems.setdefault(kind, f"in period {period} sizes add up: {error.message}")
    return list(problems.values())


def _folder() -> Any:
    return resources.files("fleet.continual") / PLACE


def _bad(name: str, problem: str) -> InputError:
    return InputError(
        "bad-scenario",
        f"the scenario {name} breaks a rule: {problem}",
        "docs/scenarios.md lists the keys and their ranges.",
    )
