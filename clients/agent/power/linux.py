"""Readings that any Linux gives: thermal zones, power supplies, NetworkManager's word on costs."""

from __future__ import annotations

from pathlib import Path

from clients.agent.power.commands import LineOf
from clients.agent.power.readings import Partial

__all__ = ["METERED_LIMIT_S", "network", "power_supplies", "thermal_zones"]

METERED_LIMIT_S = 2.0
NETWORK_MANAGER = "org.freedesktop.NetworkManager"
METERED = (
    *("busctl", "get-property", NETWORK_MANAGER, "/org/freedesktop/NetworkManager"),
    *(NETWORK_MANAGER, "Metered"),
)
# NMMetered: 0 unknown, 1 yes, 2 no, 3 guessed yes, 4 guessed no.
METERED_ANSWERS = {"u 1": True, "u 2": False, "u 3": True, "u 4": False}

MAX_FILE_BYTES = 4096
COLDEST_C, HOTTEST_C = -60.0, 200.0
FEEDING = ("Charging", "Full", "Not charging")


def thermal_zones(root: Path) -> Partial:
    """Read the hottest thermal zone under ``root``/class/thermal.

    Args:
        root: Where sysfs is mounted, ``/sys`` on a device.
    """
    celsius = [
        value / 1000
        for zone in sorted((root / "class" / "thermal").glob("thermal_zone*"))
        # The PMIC's zone of older Jetsons always says 100 C.
        if "pmic" not in (_text(zone / "type") or "").lower()
        for value in [_number(zone / "temp")]
        if value is not None and COLDEST_C < value / 1000 < HOTTEST_C
    ]
    return {"temperature_c": max(celsius, default=None)}


def power_supplies(root: Path) -> Partial:
    """Read charge, supply and draw under ``root``/class/power_supply.

    A supply whose scope is a device is the battery of a mouse or a keyboard, not of the machine.
    """
    charges: list[float] = []
    feeding: list[bool] = []
    external: list[bool] = []
    watts: list[float] = []
    for supply in sorted((root / "class" / "power_supply").glob("*")):
        if _text(supply / "scope") == "Device":
            continue
        if _text(supply / "type") == "Battery":
            charge, status = _charge(supply), _text(supply / "status")
            charges += [charge] if charge is not None else []
            if status in (*FEEDING, "Discharging"):
                feeding.append(status in FEEDING)
            if status == "Discharging":
                watts += _draw(supply)
        else:
            online = _number(supply / "online")
            external += [online != 0] if online is not None else []
    on_mains = any(external) if external else (all(feeding) if feeding else None)
    return {
        "battery_percent": min(charges, default=None),
        "on_mains": on_mains,
        "power_w": sum(watts) if watts else None,
    }


def network(line_of: LineOf) -> Partial:
    """Ask NetworkManager whether the network is metered; knows nothing where it is absent."""
    return {"metered": METERED_ANSWERS.get(line_of(METERED, METERED_LIMIT_S) or "")}


def _charge(supply: Path) -> float | None:
    percent = _number(supply / "capacity")
    if percent is not None and 0 <= percent <= 100:
        return percent
    for kind in ("energy", "charge"):
        now, full = _number(supply / f"{kind}_now"), _number(supply / f"{kind}_full")
        if now is not None and full:
            return min(max(100 * now / full, 0.0), 100.0)
    return None


def _draw(supply: Path) -> list[float]:
    microwatts = _number(supply / "power_now")
    if microwatts is not None:
        return [abs(microwatts) / 1e6]
    volts, amperes = _number(supply / "voltage_now"), _number(supply / "current_now")
    if volts is None or amperes is None:
        return []
    return [abs(volts * amperes) / 1e12]


def _number(path: Path) -> float | None:
    try:
        return float(_text(path) or "")
    except ValueError:
        return None


def _text(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_FILE_BYTES).decode(errors="replace").strip()
    except OSError:  # a zone that is switched off answers with an error, not with a number
        return None
