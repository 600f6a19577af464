"""What changes in a scenario, in words: the marks of a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.continual.events import Classes, Join, Prior, ShiftEvent
from fleet.continual.membership import Membership
from fleet.continual.scenario import Scenario

__all__ = ["Change", "changes_of"]

Touched = tuple[ShiftEvent, NDArray[np.bool_]]


@dataclass(frozen=True)
class Change:
    """Something changes.

    Attributes:
        period: The first in which it shows; of a ramp the one before it begins to.
        text: A phrase for people, without the period.
        devices: Which ones, ascending.
    """

    period: int
    text: str
    devices: tuple[int, ...]


def changes_of(
    scenario: Scenario, labels: Sequence[str], members: Membership, shifts: Sequence[Touched]
) -> tuple[Change, ...]:
    """Return a scenario's changes by period, in the order of its file within one.

    Args:
        scenario: What happens.
        labels: Class names in order of arrival.
        members: Who comes and goes.
        shifts: Shift events and which devices they touch, bool ``[devices]``.
    """
    found = [*_shift_changes(scenario, shifts), *_fleet_changes(scenario, labels, members)]
    return tuple(sorted(found, key=lambda change: change.period))


def _shift_changes(scenario: Scenario, shifts: Sequence[Touched]) -> Iterator[Change]:
    for event, flags in shifts:
        devices = tuple(np.flatnonzero(flags).tolist())
        grows = "" if event.until is None else f", growing until {event.until}"
        yield Change(event.at, event.shift + grows, devices)
        if event.ends is not None and event.ends < scenario.periods:
            yield Change(event.ends, f"{event.shift} ends", devices)


def _fleet_changes(
    scenario: Scenario, labels: Sequence[str], members: Membership
) -> Iterator[Change]:
    everybody = tuple(range(scenario.devices))
    known = scenario.start_classes
    for event in sorted(scenario.events, key=lambda event: event.at):
        if isinstance(event, Classes):
            new = labels[known : known + event.count] if event.count else labels[known:]
            known += len(new)
            yield Change(event.at, f"new: {', '.join(new)}", everybody)
        elif isinstance(event, Prior):
            again = f", again every {event.every}" if event.every else ""
            yield Change(event.at, f"new class mix{again}", everybody)
    joins = {event.at for event in scenario.events if isinstance(event, Join)}
    for period in sorted(joins):
        yield _moved(period, "joins", "join", np.flatnonzero(members.joined == period))
    for period in np.unique(members.left[members.left < scenario.periods]).tolist():
        yield _moved(period, "leaves", "leave", np.flatnonzero(members.left == period))


def _moved(period: int, one: str, many: str, devices: NDArray[np.intp]) -> Change:
    count = len(devices)
    text = f"1 device {one}" if count == 1 else f"{count} devices {many}"
    return Change(period, text, tuple(devices.tolist()))
