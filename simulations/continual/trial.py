"""The trial of a release: devices judge it beside the one before, on windows they set aside."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any

from fleet.adapt.state import CoreState
from fleet.continual.promotion import verdict
from fleet.federate.releases import Release, catch_up
from server.messages import Traffic
from simulations.continual.devices import Devices

__all__ = ["tried"]


def tried(
    devices: Devices,
    online: Sequence[int],
    before: CoreState,
    candidate: Release,
    margin: float,
    traffic: Traffic,
) -> tuple[bool, dict[str, Any]]:
    """Let devices judge a candidate.

    Args:
        devices: The run's.
        online: Those that are asked; each gets the candidate and sends two confusion counts. What
            is promoted is followed by all of them, and its bytes are counted there.
        before: State of the release that is served.
        candidate: What the round made.
        margin: By how much it may be worse.
        traffic: What this sends is added to its bytes.

    Returns:
        Whether it is promoted, and what a period's record keeps.
    """
    own = [number for number in online if devices.each[number].memory.probe is not None]
    old = [devices.probe_counts(number, before) for number in own]
    new = [devices.probe_counts(number, candidate.state) for number in own]
    traffic.bytes_up += sum(table.nbytes for table in (*old, *new))
    found = verdict(old, new, margin=margin)
    if not found.promoted:
        traffic.bytes_down += len(own) * catch_up(candidate).array.nbytes
    return found.promoted, {
        "candidate": {
            "release": [candidate.number, candidate.digest],
            "promoted": found.promoted,
            "reason": found.reason,
            "macro_f1_before": _plain(found.before),
            "macro_f1": _plain(found.candidate),
            "devices": len(own),
            "windows": found.windows,
        }
    }


def _plain(value: float) -> float | None:
    return None if isnan(value) else round(value, 6)
