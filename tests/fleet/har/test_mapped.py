from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleet.config import RunConfig
from fleet.har import synthetic
from fleet.har.dataset import DataSet, digest
from fleet.har.mapped import LARGEST_FILES_HELD, cache_folder, mapped
from fleet.har.population import population_of


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "corefleet" / "windows"


def is_mapped(dataset: DataSet) -> bool:
    return isinstance(dataset.x.base, np.memmap)


def test_mapped_windows_are_the_same_cannot_be_written_to_and_lie_in_the_users_cache(
    make_dataset: Callable[..., DataSet], cache: Path
) -> None:
    plain = make_dataset()
    found = mapped(plain)
    assert is_mapped(found)
    assert (type(found.x), found.x.dtype) == (np.ndarray, np.int16)
    assert digest(found) == digest(plain)
    assert not found.x.flags.writeable
    assert cache_folder() == cache
    assert [path.stem for path in cache.iterdir()] == [digest(plain)]


def test_a_file_that_is_there_is_used_as_it_is(
    make_dataset: Callable[..., DataSet], cache: Path
) -> None:
    mapped(make_dataset())
    (path,) = cache.iterdir()
    before = path.stat()
    assert is_mapped(mapped(make_dataset()))
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("damage", ["", "no array", "other"])
def test_a_file_that_holds_something_else_is_written_anew(
    make_dataset: Callable[..., DataSet], cache: Path, damage: str
) -> None:
    plain = make_dataset()
    mapped(plain)
    (path,) = cache.iterdir()
    if damage == "other":
        np.save(path, plain.x + 1)
    else:
        path.write_text(damage)
    found = mapped(plain)
    assert is_mapped(found)
    assert np.array_equal(found.x, plain.x)
    assert np.array_equal(np.load(path), plain.x)


def test_without_a_cache_that_can_be_written_the_windows_stay_in_memory(
    make_dataset: Callable[..., DataSet], cache: Path
) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder would be")
    plain = make_dataset()
    assert mapped(plain) is plain


def test_the_oldest_files_go_when_there_are_many(
    make_dataset: Callable[..., DataSet], cache: Path
) -> None:
    for age in range(LARGEST_FILES_HELD + 2):
        path = cache / f"{age:064x}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros(1))
        os.utime(path, (1000 - age, 1000 - age))
    mapped(make_dataset())
    left = {path.stem for path in cache.iterdir()}
    assert len(left) == LARGEST_FILES_HELD
    assert digest(make_dataset()) in left
    assert f"{0:064x}" in left
    assert f"{LARGEST_FILES_HELD + 1:064x}" not in left


def test_only_a_fleet_of_virtual_devices_maps_its_windows(cache: Path) -> None:
    dataset = synthetic.make(people=4, windows_per_activity=2)
    assert population_of(RunConfig(), dataset).dataset is dataset
    assert not cache.exists()
    assert is_mapped(population_of(RunConfig(devices=3), dataset).dataset)
