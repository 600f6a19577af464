"""Readings by psutil: load everywhere, and sensors where sysfs has no zone for them."""

from __future__ import annotations

import importlib
from typing import Any

from clients.agent.power.readings import Partial

__all__ = ["portable"]

COLDEST_C, HOTTEST_C = -60.0, 200.0


def portable(psutil: Any = None) -> Partial:
    """Ask psutil; knows nothing where it is absent.

    Args:
        psutil: The module, or what answers like it; ``None`` imports it.
    """
    if psutil is None:
        try:
            psutil = importlib.import_module("psutil")
        except ImportError:
            return {}
    battery = _of(psutil, "sensors_battery")
    return {
        "temperature_c": _temperature(_of(psutil, "sensors_temperatures") or {}),
        "battery_percent": float(battery.percent) if battery is not None else None,
        "on_mains": battery.power_plugged if battery is not None else None,
        "load": _load(psutil),
    }


def _of(psutil: Any, name: str) -> Any:
    # psutil has these functions only where the platform has the sensors.
    ask = getattr(psutil, name, None)
    return ask() if ask is not None else None


def _temperature(chips: dict[str, list[Any]]) -> float | None:
    celsius = [
        float(sensor.current)
        for chip, sensors in chips.items()
        if "pmic" not in chip.lower()
        for sensor in sensors
        if sensor.current is not None and COLDEST_C < sensor.current < HOTTEST_C
    ]
    return max(celsius, default=None)


def _load(psutil: Any) -> float | None:
    cores = psutil.cpu_count()
    return float(psutil.getloadavg()[0]) / cores if cores else None
