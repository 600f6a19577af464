from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleet.errors import DataError, UnavailableError
from fleet.har import usc_had
from fleet.har.canonical import read

savemat = pytest.importorskip("scipy.io").savemat
Locate = Callable[[str], Path]
SUBSET = "usc_had_subjects_1_3"


def miniature(root: Path) -> Path:
    """Subject 14 with the official slips: a wrong number inside and a misspelt field."""
    home = root / "USC-HAD" / "Subject14"
    home.mkdir(parents=True)
    for place, name in enumerate(usc_had.FILES):
        readings = np.full((300, 6), [1.0] * 3 + [float(place)] * 3)
        content = {"sensor_readings": readings, "activity_number": "2", "trial": "9"}
        if name == "a3t2.mat":
            content = {"sensor_readings": readings, "activity_numbr": "2"}
        savemat(home / name, content)
    return home


def test_the_activity_comes_from_the_file_name(tmp_path: Path) -> None:
    miniature(tmp_path)
    dataset = usc_had.load(tmp_path)
    assert dataset.subjects == (14,)
    assert dataset.rate_hz == 50
    assert dataset.y.tolist() == [int(name[1 : name.index("t")]) - 1 for name in usc_had.FILES]
    assert dataset.rec.tolist() == list(range(13 * 60, 14 * 60))
    middle = dataset.physical()[:, :, 64]
    np.testing.assert_allclose(middle[:, :3], 9.80665, atol=0.003)
    np.testing.assert_allclose(middle[:, 5], np.deg2rad(np.arange(60)), atol=0.002)


def test_missing_and_garbled_files_are_listed_all_at_once(tmp_path: Path) -> None:
    home = miniature(tmp_path)
    (home / "a1t1.mat").unlink()
    (home / "a1t2.mat").write_bytes(b"not a mat file")
    (home / "a1t3.mat").write_bytes((home / "a1t4.mat").read_bytes()[:1000])
    savemat(home / "a2t1.mat", {"readings": np.zeros((300, 6))})
    savemat(home / "a2t2.mat", {"sensor_readings": np.zeros((300, 5))})
    savemat(home / "a2t3.mat", {"sensor_readings": np.full((300, 6), np.nan)})
    savemat(home / "a2t4.mat", {"sensor_readings": "text"})
    with pytest.raises(DataError) as caught:
        usc_had.load(tmp_path)
    assert caught.value.code == "download-broken"
    for part in (
        "Subject14/a1t1.mat is missing",
        "Subject14/a1t2.mat is no readable .mat file",
        "Subject14/a1t3.mat is no readable .mat file",
        "Subject14/a2t1.mat lacks the field sensor_readings",
        "Subject14/a2t2.mat: sensor_readings must be [T, 6], not (300, 5)",
        "Subject14/a2t3.mat: sensor_readings holds NaN or Inf",
        "Subject14/a2t4.mat: sensor_readings must be [T, 6]",
    ):
        assert part in caught.value.message


def test_without_scipy_the_error_tells_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UnavailableError) as caught:
        usc_had.load(tmp_path)
    assert "corefleet[sim]" in caught.value.hint


@pytest.mark.parametrize("packed", [False, True])
def test_the_official_files_give_the_published_windows_bit_for_bit(
    raw_folder: Locate, raw_archive: Locate, shared_har: Path, packed: bool
) -> None:
    ours = usc_had.load(raw_archive(SUBSET) if packed else raw_folder(SUBSET))
    published = read(shared_har / "usc_had")
    rows = np.isin(published.subject, [1, 2, 3])
    for name in ("x", "y", "subject", "rec"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(published, name)[rows])
    assert (ours.labels, ours.channels) == (published.labels, published.channels)
