from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import InputError
from fleet.har.windows import decimate, segment


@given(st.integers(0, 40), st.integers(1, 8), st.integers(1, 8))
def test_segments_equal_the_naive_loop(length: int, window: int, stride: int) -> None:
    stride = min(stride, window)
    samples = np.arange(length * 2.0).reshape(length, 2)
    naive = [samples[at : at + window].T for at in range(0, length - window + 1, stride)]
    cut = segment(samples, window, stride)
    assert cut.shape == (len(naive), 2, window)
    for found, expected in zip(cut, naive, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("window", "stride"), [(4, 0), (4, 5), (0, 0)])
def test_impossible_windows_are_refused(window: int, stride: int) -> None:
    with pytest.raises(InputError, match="1 <= stride <= window"):
        segment(np.zeros((9, 1)), window, stride)


def test_samples_need_two_axes() -> None:
    with pytest.raises(InputError, match=r"\[T, c\]"):
        segment(np.zeros(9), 4, 2)


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("length", [0, 1, 30, 257])
def test_decimation_agrees_with_scipy(factor: int, length: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    samples = np.random.default_rng(1).normal(size=(length, 2))
    found = decimate(samples, factor)
    assert found.shape == (-(-length // factor), 2)
    if length and factor > 1:
        expected = signal.decimate(samples, factor, ftype="fir", zero_phase=True, axis=0)
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_decimation_keeps_slow_and_removes_fast_signals() -> None:
    seconds = np.arange(1000) / 100
    slow, fast = np.sin(2 * np.pi * 2 * seconds), np.sin(2 * np.pi * 40 * seconds)
    found = decimate(np.stack([slow, fast], axis=1), 2)[20:-20]
    np.testing.assert_allclose(found[:, 0], slow[::2][20:-20], atol=0.01)
    assert np.abs(found[:, 1]).max() < 0.01


def test_decimation_by_less_than_one_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        decimate(np.zeros((4, 1)), 0)
