"""Windows out of CSV and NPZ files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clients.agent.serving.samples import csv_windows, labelled_windows, npz_windows
from fleet.adapt.base import Base
from fleet.errors import InputError
from fleet.har.windows import segment
from tests.clients.agent.serving.factories import CHANNELS, STRIDE, WINDOW

HEADER = "t,acc_z,acc_x,acc_y"


def rows_of(samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[str]:
    """CSV lines whose columns are in another order than the base's channels."""
    return [HEADER, *(f"{t},{z!r},{x!r},{y!r}" for t, (x, y, z) in enumerate(samples.tolist()))]


@pytest.fixture(scope="module")
def samples() -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    values = np.random.default_rng(0).normal(size=(WINDOW + 3 * STRIDE + 5, CHANNELS))
    return values.astype(np.float32)


def test_csv_is_cut_as_recordings_are(
    base: Base, samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    got = list(csv_windows(rows_of(samples), base.record))
    wanted = segment(samples, WINDOW, STRIDE)
    assert [first for first, _ in got] == [n * STRIDE for n in range(len(wanted))]
    assert np.array_equal(np.concatenate([window for _, window in got]), wanted)


def test_a_stride_of_a_whole_window_leaves_no_overlap(
    base: Base, samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    about = base.record.model_copy(update={"stride": WINDOW})
    got = [window for _, window in csv_windows(rows_of(samples), about)]
    assert np.array_equal(np.concatenate(got), segment(samples, WINDOW, WINDOW))


def test_a_window_is_there_as_soon_as_it_is_full(
    base: Base, samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]]
) -> None:
    given = 0

    def lines() -> Iterator[str]:
        nonlocal given
        for line in rows_of(samples):
            given += 1
            yield line

    next(csv_windows(lines(), base.record))
    assert given == 1 + WINDOW


def test_a_header_without_a_channel_is_refused_with_what_is_missing(base: Base) -> None:
    with pytest.raises(InputError, match=r"no column acc_y, acc_z; it has t, acc_x") as refused:
        next(csv_windows(["t,acc_x", "0,1"], base.record))
    assert "acc_x [m/s^2]" in refused.value.hint
    with pytest.raises(InputError, match="it has nothing"):
        next(csv_windows([], base.record))


@pytest.mark.parametrize("row", ["0,1,2", "0,1,2,", "0,1,2,x", "0,1,2,nan", "0,1,2,inf"])
def test_a_row_without_its_numbers_is_refused_with_its_line(base: Base, row: str) -> None:
    with pytest.raises(InputError, match="line 3") as refused:
        next(csv_windows([HEADER, "0,1,2,3", row], base.record))
    assert refused.value.code == "csv-number"


def test_npz_files_hold_windows_scaled_windows_or_samples(
    base: Base, samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]], tmp_path: Path
) -> None:
    windows = segment(samples, WINDOW, STRIDE)
    np.savez(tmp_path / "windows.npz", x=windows)
    np.savez(tmp_path / "samples.npz", samples=samples)
    steps = np.round(windows / 0.01).astype(np.int16)
    np.savez(tmp_path / "canonical.npz", x=steps, scale=np.full(CHANNELS, 0.01, np.float32))
    for name, tolerance in (("windows", 0.0), ("samples", 0.0), ("canonical", 0.006)):
        got = npz_windows(tmp_path / f"{name}.npz", base.record)
        np.testing.assert_allclose(got, windows, rtol=0, atol=tolerance)
        assert got.dtype == np.float32


def test_npz_files_that_hold_nothing_of_use_are_refused(base: Base, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "bare.npy", np.zeros(3))
    (tmp_path / "bare.npy").rename(tmp_path / "bare.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    for name in ("other", "text", "bare", "objects", "absent"):
        with pytest.raises(InputError) as refused:
            npz_windows(tmp_path / f"{name}.npz", base.record)
        assert refused.value.code == "npz-unreadable"


def test_labelled_windows_have_classes_of_the_base(base: Base, tmp_path: Path) -> None:
    x = np.zeros((2, CHANNELS, WINDOW), np.float32)
    np.savez(tmp_path / "good.npz", x=x, y=np.array([0, 3], np.int16))
    np.savez(tmp_path / "beyond.npz", x=x, y=np.array([0, 4]))
    np.savez(tmp_path / "bare.npz", x=x)
    got, y = labelled_windows(tmp_path / "good.npz", base.record)
    assert (got.shape, y.tolist(), y.dtype) == (x.shape, [0, 3], np.int64)
    for name, code in (("beyond", "labels-range"), ("bare", "npz-unreadable")):
        with pytest.raises(InputError) as refused:
            labelled_windows(tmp_path / f"{name}.npz", base.record)
        assert refused.value.code == code
