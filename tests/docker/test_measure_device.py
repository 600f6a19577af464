from __future__ import annotations

import importlib.util
import json
import threading
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "measure_device.py"
    spec = importlib.util.spec_from_file_location("measure_device", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def words(tiny_data: Path, tiny_base_file: Path, tmp_path: Path) -> list[str]:
    given = {
        "--data": tiny_data,
        "--base": tiny_base_file,
        "--rank": 2,
        "--out": tmp_path / "m.json",
        "--rounds": 2,
        "--repeats": 3,
        "--seconds": 0.01,
        "--target-f1": 1.0,
    }
    return [str(word) for pair in given.items() for word in pair]


def test_it_measures_this_machine_by_the_products_own_code(
    script: ModuleType, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(words) == 0
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["format"] == 1
    assert found["torch_operation"]["ok"]
    (cpu,) = [each for each in found["latency"] if each["device"] == "cpu"]
    assert 0 < cpu["median_ms"] <= cpu["p95_ms"]
    adaptation = found["adaptation"]
    assert len(adaptation["rounds"]) in (1, 2)
    assert adaptation["train_windows"] > 0
    memory = found["memory_bytes"]
    assert 0 < memory["at_rest"] <= memory["peak_inference"] <= memory["peak_training"]
    assert found["energy"]["inference"]["windows"] > 0
    shown = capsys.readouterr().out
    assert "one window on cpu" in shown
    assert "time to F1 1" in shown


def test_energy_is_power_times_time_and_null_where_no_sensor_tells(script: ModuleType) -> None:
    read = threading.Event()

    def watts() -> float:
        read.set()
        return 5.0

    with script.Draw(watts) as told:
        assert read.wait(10)
    with script.Draw(lambda: None) as untold:
        pass
    known, unknown = told.record(), untold.record()
    assert known["mean_w"] in (5.0, None)  # the work may end while the sensor is read
    if known["readings"]:
        assert known["energy_j"] == pytest.approx(5.0 * known["seconds"])
    assert (unknown["readings"], unknown["mean_w"], unknown["energy_j"]) == (0, None, None)


def test_data_that_is_not_there_is_one_message(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--data", "no-such-data"]) == 1
    assert "no-such-data" in capsys.readouterr().err


def test_more_rounds_than_it_allows_are_refused(script: ModuleType) -> None:
    with pytest.raises(SystemExit):
        script.main(["--rounds", "201"])
