"""What a destructive verb would touch: devices, releases, rounds, operators' certificates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from server.control.verbs.fleet import Fleet
from server.control.verbs.shown import should_serve
from server.registry.records import Device, DeviceState, ReleaseRow

__all__ = ["LARGEST_NAMED", "moved_by", "rounds_of", "touched"]

LARGEST_NAMED = 100
"""Devices that an answer names; it counts them all."""


def touched(
    devices: Iterable[str] = (),
    releases: Iterable[int] = (),
    rounds: Iterable[int] = (),
    certificates: Iterable[str] = (),
) -> dict[str, Any]:
    """Return a blast radius as JSON."""
    names = sorted(set(devices))
    return {
        "device_count": len(names),
        "devices": names[:LARGEST_NAMED],
        "releases": sorted(set(releases)),
        "rounds": sorted(set(rounds)),
        "certificates": list(certificates),
    }


def rounds_of(fleet: Fleet, device: str | None = None) -> list[int]:
    """Return the open round; only where a device is in its cohort when one is named."""
    found = fleet.registry.open_round()
    if found is None or (device is not None and device not in found.row.selected):
        return []
    return [found.row.round]


def moved_by(fleet: Fleet, target: ReleaseRow, devices: Iterable[Device]) -> list[str]:
    """Return the devices that a move to a release gives another one than they should serve now."""
    current = fleet.registry.releases.current()
    return [
        device.name
        for device in devices
        if device.state is not DeviceState.revoked
        and should_serve(device, current) != target.number
    ]
