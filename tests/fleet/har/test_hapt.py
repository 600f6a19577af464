from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleet.errors import DataError
from fleet.har import hapt
from fleet.har.canonical import read

Locate = Callable[[str], Path]


def miniature(root: Path) -> Path:
    """Two experiments of one user in the official layout; returns ``RawData``."""
    raw = root / "HAPT Data Set" / "RawData"
    raw.mkdir(parents=True)
    for experiment in (1, 2):
        steps = np.arange(600)[:, None] * [1, 2, 3] / 1000 * experiment
        np.savetxt(raw / f"acc_exp{experiment:02}_user07.txt", steps)
        np.savetxt(raw / f"gyro_exp{experiment:02}_user07.txt", steps / 10)
    (raw / "labels.txt").write_text("1 7 5 1 200\n1 7 1 201 600\n2 7 12 300 450\n2 7 7 1 100\n")
    return raw


def problems_of(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        hapt.load(root)
    assert caught.value.code == "download-broken"
    return caught.value.message


@pytest.mark.parametrize("level", [".", "HAPT Data Set", "HAPT Data Set/RawData"])
def test_the_layout_is_found_with_and_without_its_top_folder(tmp_path: Path, level: str) -> None:
    miniature(tmp_path)
    dataset = hapt.load(tmp_path / level)
    assert dataset.subjects == (7,)
    # Segments of 200, 400, 151 and 100 samples give 2, 5, 1 and no windows.
    assert dataset.y.tolist() == [4, 4, 0, 0, 0, 0, 0, 11]
    assert dataset.rec.tolist() == [1] * 7 + [2]
    # Sample 201 of labels.txt is row 200 of the file.
    first = dataset.physical()[2, :, 0]
    expected = [0.2 * 9.80665, 0.4 * 9.80665, 0.6 * 9.80665, 0.02, 0.04, 0.06]
    np.testing.assert_allclose(first, expected, atol=0.003)


def test_missing_and_garbled_files_are_listed_all_at_once(tmp_path: Path) -> None:
    raw = miniature(tmp_path)
    (raw / "gyro_exp01_user07.txt").unlink()
    (raw / "acc_exp02_user07.txt").write_text("1 2 x\n")
    with open(raw / "labels.txt", "a") as file:
        file.write("1 7 13 1 200\n1 7 1.5 1 200\n1 7 1 20 10\n3 7 1 1 10\n")
    message = problems_of(tmp_path)
    for part in (
        "gyro_exp01_user07.txt is missing",
        "acc_exp02_user07.txt could not convert",
        "labels.txt: row 5 is out of range",
        "labels.txt: row 6 must hold whole numbers",
        "labels.txt: row 7 is out of range",
        "acc_exp03_user07.txt is missing",
    ):
        assert part in message


def test_labels_beyond_the_recording_and_unequal_sensors_are_refused(tmp_path: Path) -> None:
    raw = miniature(tmp_path)
    (raw / "labels.txt").write_text("1 7 5 1 601\n2 7 5 1 200\n")
    np.savetxt(raw / "gyro_exp02_user07.txt", np.zeros((599, 3)))
    message = problems_of(tmp_path)
    assert "experiment 1 is labelled up to sample 601 but has 600" in message
    assert "experiment 2: 600 acc rows but 599 gyro rows" in message


def test_another_layout_is_refused_with_the_expected_one(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError) as caught:
        hapt.load(tmp_path)
    assert caught.value.code == "layout-unknown"
    assert "RawData/labels.txt" in caught.value.hint


def test_the_six_basic_activities_come_first() -> None:
    assert len(hapt.LABELS) == 12
    assert hapt.BASIC_LABELS[-1] == "LAYING"


def test_the_official_archive_gives_the_published_windows_bit_for_bit(
    raw_archive: Locate, shared_har: Path
) -> None:
    ours, published = hapt.load(raw_archive("hapt")), read(shared_har / "hapt")
    for name in ("x", "scale", "y", "subject", "rec"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(published, name))
    assert (ours.labels, ours.channels) == (published.labels, published.channels)
    assert (ours.rate_hz, ours.window, ours.stride) == (50, 128, 64)


def test_the_windows_are_those_of_the_official_split_row_by_row(
    raw_folder: Locate, shared_har: Path
) -> None:
    home = raw_folder("hapt") / "HAPT Data Set"
    published = read(shared_har / "hapt")
    for split, count in (("Train", 7767), ("Test", 3162)):
        y = np.loadtxt(home / split / f"y_{split.lower()}.txt", dtype=int)
        people = np.loadtxt(home / split / f"subject_id_{split.lower()}.txt", dtype=int)
        rows = np.isin(published.subject, people)
        assert len(y) == count
        np.testing.assert_array_equal(published.y[rows] + 1, y)
        np.testing.assert_array_equal(published.subject[rows], people)
