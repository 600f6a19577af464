from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleet.har.dataset import Channel, DataSet

AXES = tuple(
    Channel(f"{sensor}_{axis}", unit)
    for sensor, unit in (("acc", "m/s^2"), ("gyro", "rad/s"))
    for axis in "xyz"
)


def _shared() -> Path:
    given = os.environ.get("FLEET_DATA", "").split(os.pathsep)[0]
    if not given:
        return Path(__file__).resolve().parents[4] / "shared" / "data"
    return Path(given) if (Path(given) / "har").is_dir() else Path(given).parent


@pytest.fixture(scope="session")
def shared_har() -> Path:
    folder = _shared() / "har"
    if not (folder / "hapt.npz").is_file():
        pytest.skip("the shared real data sets are not on this machine")
    return folder


@pytest.fixture(scope="session")
def raw_archive() -> Callable[[str], Path]:
    def locate(name: str) -> Path:
        path = _shared() / "raw" / f"{name}.tar.xz"
        if not path.is_file():
            pytest.skip(f"the official archive {path.name} is not on this machine")
        return path

    return locate


@pytest.fixture(scope="session")
def raw_folder(
    raw_archive: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    unpacked: dict[str, Path] = {}

    def unpack(name: str) -> Path:
        if name not in unpacked:
            unpacked[name] = tmp_path_factory.mktemp(name)
            with tarfile.open(raw_archive(name)) as archive:
                archive.extractall(unpacked[name], filter="data")
        return unpacked[name]

    return unpack


@pytest.fixture
def make_dataset() -> Callable[..., DataSet]:
    """Two people, two recordings each, two classes, windows of 4 at stride 2."""

    def make(windows: int = 16, **changes: object) -> DataSet:
        random = np.random.default_rng(0)
        quarter = np.repeat(np.arange(4), -(-windows // 4))[:windows]
        fields: dict[str, object] = {
            "name": "tiny",
            "labels": ("walk", "sit"),
            "channels": AXES,
            "rate_hz": 50.0,
            "window": 4,
            "stride": 2,
            "x": random.integers(-500, 500, (windows, 6, 4)).astype(np.int16),
            "scale": np.array([0.005] * 3 + [0.002] * 3, np.float32),
            "y": (np.arange(windows) % 2).astype(np.int16),
            "subject": (quarter // 2 + 1).astype(np.int16),
            "rec": quarter.astype(np.int32),
            "info": {"licence": "none", "folds": [[1], [2]]},
        }
        return DataSet(**{**fields, **changes})  # type: ignore[arg-type]

    return make
