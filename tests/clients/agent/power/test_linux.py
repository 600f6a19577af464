from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clients.agent.power.linux import METERED, network, power_supplies, thermal_zones

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Make files under a fake sysfs: ``tree(**{"class/x": "text"})``."""

    def make(files: dict[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / "class" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content + "\n")
        return tmp_path

    return make


def zones(*kinds: tuple[str, str]) -> dict[str, str]:
    found = {}
    for number, (kind, millidegrees) in enumerate(kinds):
        found[f"thermal/thermal_zone{number}/type"] = kind
        found[f"thermal/thermal_zone{number}/temp"] = millidegrees
    return found


def test_the_hottest_zone_counts(tree: Tree) -> None:
    root = tree(zones(("cpu-thermal", "45500"), ("gpu-thermal", "47250"), ("tj-thermal", "47000")))
    assert thermal_zones(root) == {"temperature_c": 47.25}


def test_zones_that_lie_or_sleep_do_not_count(tree: Tree) -> None:
    root = tree(
        zones(("PMIC-Die", "100000"), ("cv0", "-256000"), ("x", ""), ("y", "n/a"), ("CPU", "40000"))
    )
    assert thermal_zones(root) == {"temperature_c": 40.0}


def test_a_zone_that_answers_with_an_error_does_not_count(tree: Tree) -> None:
    root = tree(zones(("CPU", "40000")))
    (root / "class" / "thermal" / "thermal_zone1" / "temp").mkdir(parents=True)
    assert thermal_zones(root) == {"temperature_c": 40.0}


def test_a_machine_without_sensors_knows_nothing(tmp_path: Path) -> None:
    assert thermal_zones(tmp_path) == {"temperature_c": None}
    assert power_supplies(tmp_path) == {
        "battery_percent": None,
        "on_mains": None,
        "power_w": None,
    }


def test_a_laptop_on_its_battery_tells_charge_and_draw(tree: Tree) -> None:
    root = tree(
        {
            "power_supply/AC/type": "Mains",
            "power_supply/AC/online": "0",
            "power_supply/BAT0/type": "Battery",
            "power_supply/BAT0/status": "Discharging",
            "power_supply/BAT0/capacity": "83",
            "power_supply/BAT0/power_now": "7250000",
        }
    )
    assert power_supplies(root) == {"battery_percent": 83.0, "on_mains": False, "power_w": 7.25}


def test_the_battery_of_a_mouse_is_not_the_machines(tree: Tree) -> None:
    root = tree(
        {
            "power_supply/hidpp_battery_0/type": "Battery",
            "power_supply/hidpp_battery_0/scope": "Device",
            "power_supply/hidpp_battery_0/status": "Discharging",
            "power_supply/hidpp_battery_0/capacity": "5",
        }
    )
    assert set(power_supplies(root).values()) == {None}


def test_usb_c_feeds_as_well_as_mains(tree: Tree) -> None:
    root = tree(
        {
            "power_supply/AC/type": "Mains",
            "power_supply/AC/online": "0",
            "power_supply/ucsi-source-psy-1/type": "USB",
            "power_supply/ucsi-source-psy-1/online": "1",
        }
    )
    assert power_supplies(root)["on_mains"] is True


@pytest.mark.parametrize(
    ("status", "on_mains"),
    [("Charging", True), ("Full", True), ("Not charging", True), ("Unknown", None)],
)
def test_a_battery_alone_tells_the_supply_by_its_status(
    tree: Tree, status: str, on_mains: bool | None
) -> None:
    root = tree(
        {
            "power_supply/BAT0/type": "Battery",
            "power_supply/BAT0/status": status,
            "power_supply/BAT0/energy_now": "30000000",
            "power_supply/BAT0/energy_full": "40000000",
        }
    )
    found = power_supplies(root)
    assert (found["battery_percent"], found["on_mains"]) == (75.0, on_mains)
    assert found["power_w"] is None


def test_the_draw_of_a_battery_is_volts_times_amperes(tree: Tree) -> None:
    root = tree(
        {
            "power_supply/BAT0/type": "Battery",
            "power_supply/BAT0/status": "Discharging",
            "power_supply/BAT0/voltage_now": "12000000",
            "power_supply/BAT0/current_now": "-500000",
        }
    )
    assert power_supplies(root)["power_w"] == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("answer", "metered"),
    [
        ("u 1", True),
        ("u 2", False),
        ("u 3", True),
        ("u 4", False),
        ("u 0", None),
        ("Failed to get property", None),
        (None, None),
    ],
)
def test_networkmanager_tells_whether_the_network_is_metered(
    answer: str | None, metered: bool | None
) -> None:
    asked = []

    def line_of(command: object, limit_s: float) -> str | None:
        asked.append(command)
        return answer

    assert network(line_of) == {"metered": metered}
    assert asked == [METERED]
