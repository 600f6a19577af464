"""Readings of a Jetson: the jtop service where it runs, else one line of ``tegrastats``."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from clients.agent.bounded import within
from clients.agent.power.commands import LineOf
from clients.agent.power.readings import Partial

__all__ = ["JTOP_LIMIT_S", "TEGRASTATS_LIMIT_S", "jtop", "parse_tegrastats", "tegrastats"]

JTOP_LIMIT_S = 4.0
TEGRASTATS_LIMIT_S = 4.0
TEGRASTATS = ("tegrastats", "--interval", "500")

TEMPERATURE = re.compile(r"\b(\w+)@(-?\d+(?:\.\d+)?)C\b")
RAIL = re.compile(r"\b((?:VDD|POM)_\w+) (\d+)(?:mW)?")
# The rails that feed the whole module. AGX Xavier and AGX Orin have none: their rails are parts.
INPUT_RAILS = ("VDD_IN", "POM_5V_IN")
# The PMIC's zone of older boards always says 100 C; a block without power says -256 C.
UNTRUSTED = ("pmic",)
COLDEST_C, HOTTEST_C = -60.0, 200.0


def parse_tegrastats(line: str) -> Partial:
    """Read one line of ``tegrastats``: hottest sensor and power at the board's input.

    Args:
        line: As printed by Jetson Linux r32 to r36; unknown parts are skipped.
    """
    rails = {name: int(milliwatts) for name, milliwatts in RAIL.findall(line)}
    power = next((rails[name] / 1000 for name in INPUT_RAILS if name in rails), None)
    return {
        "temperature_c": _hottest({n: float(t) for n, t in TEMPERATURE.findall(line)}),
        "power_w": power,
    }


def tegrastats(line_of: LineOf) -> Partial:
    """Ask ``tegrastats`` for one line; knows nothing where there is no such program."""
    line = line_of(TEGRASTATS, TEGRASTATS_LIMIT_S)
    return parse_tegrastats(line) if line else {}


def jtop(connect: Callable[[], Any] | None = None) -> Partial:
    """Ask the jtop service (jetson-stats); knows nothing where it is absent.

    Args:
        connect: Makes the client, a context manager with ``ok``, ``temperature`` and ``power``;
            by default ``jtop.jtop``, if the machine has it.
    """
    found, answer = within(JTOP_LIMIT_S, lambda: _ask_jtop(connect))
    return answer if found and answer is not None else {}


def _ask_jtop(connect: Callable[[], Any] | None) -> Partial:
    if connect is None:
        try:
            connect = importlib.import_module("jtop").jtop
        except ImportError:
            return {}
    with connect() as client:
        if not client.ok():
            return {}
        online = {
            name: float(sensor["temp"])
            for name, sensor in client.temperature.items()
            if sensor.get("online", True)
        }
        total: Mapping[str, Any] = client.power.get("tot", {})
        milliwatts: Any = total.get("power")
        # Where a board has no input rail, jtop sums the rails that it has and names none: a part.
        whole = milliwatts is not None and total.get("name") in INPUT_RAILS
        return {
            "temperature_c": _hottest(online),
            "power_w": float(milliwatts) / 1000 if whole else None,
        }


def _hottest(sensors: Mapping[str, float]) -> float | None:
    trusted = [
        celsius
        for name, celsius in sensors.items()
        if COLDEST_C < celsius < HOTTEST_C and not name.lower().startswith(UNTRUSTED)
    ]
    return max(trusted, default=None)
