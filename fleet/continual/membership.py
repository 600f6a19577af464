"""Who is there: devices that join and leave, those that an event touches, and who is online."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.continual.events import Join, Leave
from fleet.continual.scenario import Scenario, devices_of
from fleet.seeds import derive_seed

__all__ = ["NEVER", "Membership", "device_name", "membership", "online", "touched"]

NEVER = 2**62
"""A period that does not come."""

HOURS = 24.0

Flags = NDArray[np.bool_]
Periods = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Membership:
    """When each device comes and goes.

    Attributes:
        joined: int64 ``[devices]``, first period.
        left: int64 ``[devices]``, first period without it; :data:`NEVER` for those that stay.
    """

    joined: Periods
    left: Periods


def device_name(device: int) -> str:
    """Name a device.

    >>> device_name(42)
    'device-00042'
    """
    return f"device-{device:05d}"


def membership(scenario: Scenario, seed: int) -> Membership:
    """Draw who joins and leaves; nobody does so twice, and only those leave that are there."""
    devices = scenario.devices
    joined = np.zeros(devices, np.int64)
    left = np.full(devices, NEVER, np.int64)
    joins = [event for event in scenario.events if isinstance(event, Join)]
    leaves = [event for event in scenario.events if isinstance(event, Leave)]
    if joins:
        order, taken = _order(devices, seed, "scenario/join"), 0
        for join in joins:
            count = devices_of(join.share, devices)
            joined[order[taken : taken + count]] = join.at
            taken += count
    if leaves:
        order = _order(devices, seed, "scenario/leave")
        for leave in sorted(leaves, key=lambda event: event.at):
            there = order[(joined[order] < leave.at) & (left[order] == NEVER)]
            left[there[: devices_of(leave.share, devices)]] = leave.at
    return Membership(joined, left)


def touched(share: float, devices: int, seed: int, number: int) -> Flags:
    """Return which devices event ``number`` touches, bool ``[devices]``."""
    flags = np.zeros(devices, np.bool_)
    count = devices_of(share, devices)
    chosen = slice(None) if count == devices else _order(devices, seed, f"scenario/event/{number}")
    flags[chosen if isinstance(chosen, slice) else chosen[:count]] = True
    return flags


def online(scenario: Scenario, device: int, period: int, seed: int) -> bool:
    """Tell whether a device that is there can take part in the round of a period."""
    name = device_name(device)
    if scenario.day is not None:
        zone = scenario.day.zones_h * _uniform(seed, 0, name, "scenario/zone")
        hour = (period + 0.5) * scenario.period_hours + zone
        if (hour - scenario.day.starts_h) % HOURS >= scenario.day.hours:
            return False
    return scenario.online == 1 or _uniform(seed, period, name, "scenario/online") < scenario.online


def _order(devices: int, seed: int, purpose: str) -> Periods:
    """Return all devices in an order of the seed's, int64 ``[devices]``."""
    keys = [derive_seed(seed, 0, device_name(device), purpose) for device in range(devices)]
    return np.argsort(np.array(keys, np.int64), kind="stable").astype(np.int64)


def _uniform(seed: int, period: int, name: str, purpose: str) -> float:
    return derive_seed(seed, period, name, purpose) / 2**63
