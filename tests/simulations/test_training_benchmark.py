from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from fleet.errors import InputError, UnavailableError
from fleet.measure import resident
from fleet.models.config import ModelConfig
from simulations.benchmarks import training_resident
from simulations.benchmarks.training import Setting, run
from simulations.benchmarks.training_output import write_files
from simulations.cli.units import bytes_of

FIGURES = {"saved_bytes", "dynamic_bytes", "total_bytes", "step_seconds"}


@pytest.fixture(scope="module")
def record() -> dict[str, object]:
    config = ModelConfig(name="t-resnet", channels=3, classes=4, window=32)
    return run(Setting(config, batch=8, micro_batch=4, rank=2, frame="svd", runs=1))


def test_every_side_has_every_figure(record: dict[str, dict[str, dict[str, float]]]) -> None:
    methods = record["methods"]
    assert set(methods) == {"full", "core", "core-autograd", "lora", "head", "infer"}
    assert all(set(figures) >= FIGURES for figures in methods.values())
    assert all(figures["dynamic_bytes"] > 0 for figures in methods.values())


def test_lean_training_keeps_less_than_plain_autograd_and_full_keeps_most(
    record: dict[str, dict[str, dict[str, float]]],
) -> None:
    saved = {name: figures["saved_bytes"] for name, figures in record["methods"].items()}
    assert saved["infer"] == 0
    assert 10 * saved["core"] < saved["core-autograd"] < saved["full"]


def test_trained_parameters_are_those_of_the_methods(
    record: dict[str, dict[str, dict[str, float]]],
) -> None:
    trained = {name: figures["trained_parameters"] for name, figures in record["methods"].items()}
    assert trained["core"] == trained["core-autograd"] == 2304
    assert trained["head"] == 128 * 4 + 4
    assert trained["infer"] == 0


def test_the_files_hold_a_row_per_method_and_a_picture(
    record: dict[str, dict[str, dict[str, float]]], tmp_path: Path
) -> None:
    write_files(record, "dynamic_bytes", tmp_path)
    rows = list(csv.DictReader((tmp_path / "training.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == list(record["methods"])
    assert int(rows[0]["saved_bytes"]) == record["methods"]["full"]["saved_bytes"]
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")


linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="resident memory is read from Linux's /proc"
)


# Each side is two processes of some seconds.
@linux
@pytest.mark.faults
@pytest.mark.parametrize("sides", [("full", "core"), training_resident.MEASURED])
def test_resident_memory_of_fresh_processes_is_above_their_own_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sides: tuple[str, ...]
) -> None:
    monkeypatch.setattr(training_resident, "MEASURED", sides)
    config = ModelConfig(name="t-resnet", channels=6, classes=4, window=64)
    setting = Setting(config, batch=32, micro_batch=4, rank=4, frame="svd", runs=1)
    record = run(setting, resident=True)
    methods = record["methods"]
    measured = {name for name, figures in methods.items() if "resident_bytes" in figures}
    assert measured == set(sides)
    full, core = methods["full"], methods["core"]
    # It holds at least what the allocator gave out; the rest is what maps and fragments.
    assert full["resident_bytes"] > 0.8 * full["dynamic_bytes"]
    assert core["ratios"]["resident_of_full"] < 0.5
    assert core["resident_before_bytes"] > core["resident_bytes"] > 0
    write_files(record, "dynamic_bytes", tmp_path)
    rows = list(csv.DictReader((tmp_path / "training.csv").read_text().splitlines()))
    found = {row["method"]: row["resident_bytes"] for row in rows}
    assert found["full"] == str(full["resident_bytes"])
    assert found["lora"] == ""


def test_resident_memory_is_refused_where_it_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(resident, "_STATUS", tmp_path / "absent")
    config = ModelConfig(name="small-cnn", channels=3, classes=4, window=32)
    setting = Setting(config, batch=2, micro_batch=2, rank=2, frame="svd", runs=1)
    with pytest.raises(UnavailableError, match="Linux's /proc") as caught:
        run(setting, resident=True)
    assert caught.value.code == "resident-unmeasurable"


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("64MiB", 2**26), ("2 kB", 2000), ("1.5GB", 1_500_000_000)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "lots", "-1", "3 bananas", "1e3"])
def test_what_is_no_size_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(InputError, match="MiB"):
        bytes_of(text)
