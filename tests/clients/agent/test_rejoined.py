"""A device that takes in re-joined recordings learns from the windows of its simulation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clients.agent.cli.root import run
from clients.agent.config import DeviceConfig, save_config
from clients.agent.simulated import learner_of
from clients.agent.store.records import Split
from fleet.adapt.base import Base
from fleet.config import RunConfig
from fleet.errors import DataError
from fleet.har import sources
from fleet.har.normalise import Normalisation
from fleet.har.population import LabelledWindows, population_of
from fleet.har.virtual import VirtualFleet, virtual_fleet
from simulations.recordings import raw_windows, write_recordings
from tests.clients.agent.store.windows import opened
from tests.simulations.tiny_fleet import MakeConfig


def taken_in(
    fleet: VirtualFleet,
    partition: int,
    folder: Path,
    base_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> tuple[dict[str, LabelledWindows], dict[str, Any]]:
    """Take recordings in with the device's own commands; return its windows and the reports."""
    state = folder / f"state-{partition}"
    (state / "model").mkdir(parents=True)
    shutil.copy(base_file, state / "model" / "base.safetensors")
    save_config(DeviceConfig(name=fleet.name(partition)), state)
    files = write_recordings(fleet, partition, folder / f"recordings-{partition}")
    place = ["--person", "owner", "--state", str(state), "--format", "json"]
    reports = {}
    for side, path in (("train", files.train), ("held-out", files.held_out)):
        assert run(["ingest", str(path), "--split", side, *place]) == 0
        reports[side] = json.loads(capsys.readouterr().out)["data"]["sources"][str(path)]
    assert run(["label", "--file", str(files.labels), "--new-class", *place]) == 0
    said = json.loads(capsys.readouterr().out)["data"]
    assert said["windows"] == said["statements"]
    dataset = fleet.population.dataset
    shape = len(dataset.channels), dataset.window
    held: dict[str, LabelledWindows] = {}
    splits: tuple[Split, ...] = ("train", "held-out")
    with opened(state) as store:
        for split in splits:
            loaded = store.windows.load(shape, split=split, labelled=True)
            y = np.array([dataset.labels.index(str(name)) for name in loaded.labels], np.int64)
            held[split] = LabelledWindows(loaded.x, y)
    return held, reports


def check_equal(here: LabelledWindows, there: LabelledWindows) -> None:
    # Bits, not values: -0.0 equals 0.0.
    assert here.x.dtype == there.x.dtype == np.float32
    np.testing.assert_array_equal(here.x.view(np.uint32), there.x.view(np.uint32))
    np.testing.assert_array_equal(here.y, there.y)


@pytest.mark.parametrize(
    ("changes", "joined"),
    [
        ({}, True),
        ({"devices": 4, "windows_per_device": 20, "class_mix": 0.5}, True),
        ({"shift": "remount:35+gain:10", "variation": "gain:5"}, True),
        # Each window has noise of its own, so no two of them share samples.
        ({"shift": "noise:10"}, False),
    ],
)
def test_a_device_learns_from_the_windows_of_its_simulation(
    make_config: MakeConfig,
    tiny_base: Base,
    tiny_base_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    joined: bool,
) -> None:
    config: RunConfig = make_config(**changes)
    fleet = virtual_fleet(config, population_of(config))
    record = tiny_base.record
    normalise = Normalisation(np.array(record.mean, np.float32), np.array(record.std, np.float32))
    for partition in range(2):
        held, reports = taken_in(fleet, partition, tmp_path, tiny_base_file, capsys)
        for split, raw in zip(("train", "held-out"), raw_windows(fleet, partition), strict=True):
            check_equal(held[split], raw)
            assert (reports[split]["segments"] < len(raw.y)) == joined
        learner = learner_of(config.for_flower(), partition).windows
        train = LabelledWindows(normalise.apply(held["train"].x), held["train"].y)
        test = LabelledWindows(normalise.apply(held["held-out"].x), held["held-out"].y)
        check_equal(train, LabelledWindows(learner.train_x, learner.train_y))
        check_equal(test, LabelledWindows(learner.test_x, learner.test_y))


def test_a_device_learns_from_the_windows_of_its_simulation_on_hapt(
    tiny_base: Base, tiny_base_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        dataset = sources.find("hapt")
    except DataError:
        pytest.skip("HAPT is not at hand: FLEET_DATA names no folder with it")
    # The base only says what a window is, and HAPT's are of that kind.
    record = tiny_base.record
    assert record.channels == tuple((channel.name, channel.unit) for channel in dataset.channels)
    assert (record.rate_hz, record.window, record.stride) == (50.0, 128, 64)
    config = RunConfig.parse({"data": "hapt"})
    fleet = virtual_fleet(config, population_of(config, dataset))
    for partition in range(2):
        held, reports = taken_in(fleet, partition, tmp_path, tiny_base_file, capsys)
        for split, raw in zip(("train", "held-out"), raw_windows(fleet, partition), strict=True):
            assert len(raw.y) > 50
            check_equal(held[split], raw)
            assert reports[split]["segments"] < len(raw.y)
