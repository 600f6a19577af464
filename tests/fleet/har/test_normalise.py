from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fleet.errors import DataError, MismatchError
from fleet.har import normalise
from fleet.har.dataset import DataSet

Make = Callable[..., DataSet]


def test_the_fit_agrees_with_plain_numpy(make_dataset: Make) -> None:
    dataset = make_dataset(windows=64)
    values = dataset.physical(dataset.subject == 1).astype(np.float64)
    fitted = normalise.fit(dataset, [1])
    np.testing.assert_allclose(fitted.mean, values.mean(axis=(0, 2)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fitted.std, values.std(axis=(0, 2)), rtol=1e-5)
    assert fitted.mean.dtype == fitted.std.dtype == np.float32


def test_normalised_windows_have_mean_zero_and_deviation_one(make_dataset: Make) -> None:
    dataset = make_dataset(windows=64)
    z = normalise.fit(dataset, [1, 2]).apply(dataset.physical())
    assert z.dtype == np.float32
    np.testing.assert_allclose(z.mean(axis=(0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=(0, 2)), 1, rtol=1e-5)


def test_neither_chunks_nor_order_change_a_bit(
    make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make_dataset(windows=64)
    whole = normalise.fit(dataset, [1, 2])
    monkeypatch.setattr(normalise, "CHUNK_WINDOWS", 7)
    chunked = normalise.fit(dataset, [2, 1, 1])
    assert (whole.mean == chunked.mean).all()
    assert (whole.std == chunked.std).all()


def test_a_constant_channel_becomes_zero(make_dataset: Make) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (16, 6, 4)).astype(np.int16)
    x[:, 2] = 1962
    dataset = make_dataset(x=x)
    fitted = normalise.fit(dataset, [1])
    assert fitted.std[2] == dataset.scale[2]
    np.testing.assert_allclose(fitted.apply(dataset.physical())[:, 2], 0, atol=1e-3)


def test_extreme_values_do_not_overflow(make_dataset: Make) -> None:
    x = np.full((4096, 6, 4), -32768, np.int16)
    rows = np.zeros(4096, np.int16)
    dataset = make_dataset(x=x, y=rows, subject=rows, rec=rows.astype(np.int32))
    fitted = normalise.fit(dataset, [0])
    np.testing.assert_allclose(fitted.mean, -32768 * dataset.scale, rtol=1e-6)


def test_unknown_people_and_other_channels_are_refused(make_dataset: Make) -> None:
    dataset = make_dataset()
    with pytest.raises(DataError, match=r"no subject \[9\]"):
        normalise.fit(dataset, [1, 9])
    with pytest.raises(DataError, match="no people"):
        normalise.fit(dataset, [])
    with pytest.raises(MismatchError, match=r"\[n, 6, t\], not \[1, 3, 4\]"):
        normalise.fit(dataset, [1]).apply(np.zeros((1, 3, 4)))
