from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleet.errors import DataError
from fleet.har import motionsense
from fleet.har.canonical import read

Locate = Callable[[str], Path]
SUBSET = "motionsense_subjects_1_3"


def miniature(root: Path, people: tuple[int, ...] = (2, 10)) -> Path:
    base = root / "A_DeviceMotion_data"
    for number, trial in enumerate(motionsense.TRIALS):
        (base / trial).mkdir(parents=True)
        for person in people:
            rows = np.full((130 + person, 13), 0.01 * number + 0.001 * person)
            rows[:, 0] = np.arange(len(rows))
            np.savetxt(
                base / trial / f"sub_{person}.csv",
                rows,
                delimiter=",",
                header=motionsense.HEADER,
                comments="",
            )
    return base


def test_acceleration_is_gravity_plus_user_acceleration(tmp_path: Path) -> None:
    miniature(tmp_path)
    dataset = motionsense.load(tmp_path)
    assert dataset.subjects == (2, 10)
    assert len(dataset.x) == 30
    assert dataset.rec.tolist() == [24 * n + p - 1 for n in range(15) for p in (2, 10)]
    values = dataset.physical()[2, :, 0]
    np.testing.assert_allclose(values[:3], 2 * 0.012 * 9.80665, atol=0.003)
    np.testing.assert_allclose(values[3:], 0.012, atol=0.001)


def test_kaggles_doubly_nested_zip_is_read(tmp_path: Path) -> None:
    base = miniature(tmp_path / "plain")
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(base.rglob("*.csv")):
            name = file.relative_to(base).as_posix()
            archive.write(file, f"A_DeviceMotion_data/A_DeviceMotion_data/{name}")
            archive.writestr(f"__MACOSX/A_DeviceMotion_data/A_DeviceMotion_data/{name}", "junk")
            archive.writestr(f"B_Accelerometer_data/B_Accelerometer_data/{name}", ",x,y,z\n")
    expected, found = motionsense.load(base), motionsense.load(path)
    np.testing.assert_array_equal(found.x, expected.x)
    np.testing.assert_array_equal(found.rec, expected.rec)


def test_missing_and_garbled_files_are_listed_all_at_once(tmp_path: Path) -> None:
    base = miniature(tmp_path)
    (base / "sit_5" / "sub_10.csv").unlink()
    (base / "wlk_7" / "sub_2.csv").write_text(",x,y,z\n0,1,2,3\n")
    (base / "wlk_8" / "sub_2.csv").write_text("")
    shutil.copytree(base / "dws_1", base / "dws_3")
    with pytest.raises(DataError) as caught:
        motionsense.load(tmp_path)
    assert caught.value.code == "download-broken"
    for part in (
        "sit_5/sub_10.csv is missing",
        "wlk_7/sub_2.csv starts with ',x,y,z'",
        "wlk_8/sub_2.csv is empty",
        "dws_3/sub_2.csv is no official file",
    ):
        assert part in caught.value.message


def test_copies_of_a_recording_are_named(tmp_path: Path) -> None:
    base = miniature(tmp_path)
    shutil.copy(base / "sit_5" / "sub_2.csv", base / "sit_13" / "sub_2.csv")
    assert motionsense.load(tmp_path).info["known_duplicates"] == [[24 * 5 + 1, 24 * 6 + 1]]


@pytest.mark.parametrize("packed", [False, True])
def test_the_official_files_give_the_published_windows_bit_for_bit(
    raw_folder: Locate, raw_archive: Locate, shared_har: Path, packed: bool
) -> None:
    ours = motionsense.load(raw_archive(SUBSET) if packed else raw_folder(SUBSET))
    published = read(shared_har / "motionsense")
    rows = np.isin(published.subject, [1, 2, 3])
    for name in ("x", "y", "subject", "rec"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(published, name)[rows])
    np.testing.assert_array_equal(ours.scale, published.scale)
    assert (ours.labels, ours.channels) == (published.labels, published.channels)
    assert ours.info["known_duplicates"] == [[120, 144]]
