from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clients.agent import power
from clients.agent.bounded import within
from clients.agent.power import Readings, combined, sources_of
from clients.agent.power.commands import first_line
from clients.agent.power.portable import portable


def broken() -> dict[str, Any]:
    raise OSError("no such sensor")


def test_the_first_source_that_knows_gives_and_is_named() -> None:
    readings = combined(
        [
            ("broken", broken),
            ("one", lambda: {"temperature_c": 50.0, "power_w": None}),
            ("two", lambda: {"temperature_c": 60.0, "power_w": 4.0, "on_mains": False}),
        ]
    )
    assert (readings.temperature_c, readings.power_w, readings.on_mains) == (50.0, 4.0, False)
    assert readings.sources == {"temperature_c": "one", "power_w": "two", "on_mains": "two"}
    assert readings.battery_percent is None
    json.dumps(readings.record(), allow_nan=False)


def test_without_sources_everything_is_unknown() -> None:
    assert combined([]) == Readings()


def test_a_machine_is_read_through_its_file_system_and_its_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power.jetson, "JTOP_LIMIT_S", 5.0)
    zone = tmp_path / "class" / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal")
    (zone / "temp").write_text("41000")

    def line_of(command: Sequence[str], limit_s: float) -> str | None:
        return "u 2" if command[0] == "busctl" else None

    readings = combined(sources_of(tmp_path, line_of))
    assert (readings.temperature_c, readings.metered) == (41.0, False)
    assert readings.sources["temperature_c"] == "thermal-zones"
    assert readings.load is not None


def sensor(celsius: float | None) -> SimpleNamespace:
    return SimpleNamespace(current=celsius)


def test_psutil_gives_load_and_what_it_has() -> None:
    full = SimpleNamespace(
        sensors_battery=lambda: SimpleNamespace(percent=55, power_plugged=None),
        sensors_temperatures=lambda: {
            "coretemp": [sensor(50.0), sensor(61.5)],
            "pmic": [sensor(100.0)],
            "odd": [sensor(None), sensor(-256.0)],
        },
        cpu_count=lambda: 4,
        getloadavg=lambda: (2.0, 1.0, 1.0),
    )
    assert portable(full) == {
        "temperature_c": 61.5,
        "battery_percent": 55.0,
        "on_mains": None,
        "load": 0.5,
    }


def test_psutil_without_sensors_gives_the_load_alone() -> None:
    bare = SimpleNamespace(cpu_count=lambda: None, getloadavg=lambda: (1.0, 1.0, 1.0))
    assert set(portable(bare).values()) == {None}


def test_a_command_gives_its_first_line_and_is_ended() -> None:
    endless = "import time\nprint('one', flush=True)\nprint('two', flush=True)\ntime.sleep(60)"
    start = time.monotonic()
    assert first_line([sys.executable, "-c", endless], 20.0) == "one"
    assert time.monotonic() - start < 15


def test_a_command_without_end_of_line_gives_what_it_printed() -> None:
    assert first_line([sys.executable, "-c", "print('x', end='')"], 20.0) == "x"


@pytest.mark.parametrize("script", ["", "import time; time.sleep(60)"])
def test_a_silent_command_gives_nothing_in_bounded_time(script: str) -> None:
    start = time.monotonic()
    assert first_line([sys.executable, "-c", script], 0.5) is None
    assert time.monotonic() - start < 10


def test_an_absent_command_gives_nothing() -> None:
    assert first_line(["corefleet-no-such-program"], 1.0) is None


def test_a_call_within_its_time_gives_its_result_or_its_error() -> None:
    assert within(5.0, lambda: 7) == (True, 7)
    assert within(5.0, lambda: None) == (True, None)
    with pytest.raises(ZeroDivisionError):
        within(5.0, lambda: 1 / 0)


def test_a_call_that_hangs_is_left_alone() -> None:
    stuck = threading.Event()
    assert within(0.05, stuck.wait) == (False, None)
    stuck.set()
