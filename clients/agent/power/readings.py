"""What a device's sensors say at one moment; what no sensor says is ``None``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

__all__ = ["QUANTITIES", "Partial", "Readings", "Source", "combined"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Readings:
    """One look at the device.

    Args:
        temperature_c: Hottest trusted sensor, degrees Celsius.
        battery_percent: Charge, 0 to 100.
        on_mains: Whether an external supply feeds the device.
        load: Mean of runnable processes per core over a minute; 1.0 is fully busy.
        power_w: Draw of the whole board, watts.
        metered: Whether the network is paid by volume.
        sources: Which source gave each quantity.
        new_labels: Labels that are new, by the store; no sensor. See ``Policy.label_rounds``.
        trained_today_s: Seconds of training since midnight, by the journal; no sensor.
        rounds_left: Trainings that the last alarm of a drift detector is still good for, by the
            store; None where the device takes part without one.
        changed_s: When that alarm was, or the device joined, seconds since the epoch.
    """

    temperature_c: float | None = None
    battery_percent: float | None = None
    on_mains: bool | None = None
    load: float | None = None
    power_w: float | None = None
    metered: bool | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    new_labels: int | None = None
    trained_today_s: float | None = None
    rounds_left: int | None = None
    changed_s: float | None = None

    def record(self) -> dict[str, Any]:
        """Return the readings as JSON holds them."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {**values, "sources": dict(self.sources)}


QUANTITIES = ("temperature_c", "battery_percent", "on_mains", "load", "power_w", "metered")

# What one source knows: some of QUANTITIES; a missing key or ``None`` is "no such sensor".
Partial = Mapping[str, Any]
Source = Callable[[], Partial]


def combined(sources: Iterable[tuple[str, Source]]) -> Readings:
    """Ask each source once, in order; the first that knows a quantity gives it.

    A source that fails knows nothing: a broken sensor must not stop the device's main job.
    """
    readings = Readings()
    for name, source in sources:
        try:
            known = source()
        except Exception:
            logger.debug("%s could not be read", name, exc_info=True)
            continue
        new = {
            key: known[key]
            for key in QUANTITIES
            if known.get(key) is not None and getattr(readings, key) is None
        }
        readings = replace(
            readings, **new, sources={**readings.sources, **dict.fromkeys(new, name)}
        )
    return readings
