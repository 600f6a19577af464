from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fleet.har.dataset import DataSet
from fleet.har.summary import summarise


def test_a_summary_counts_people_classes_and_minutes(make_dataset: Callable[..., DataSet]) -> None:
    summary = summarise(make_dataset())
    assert (summary.windows, summary.recordings) == (16, 4)
    assert summary.per_label == (8, 8)
    assert summary.per_subject == {1: (4, 4), 2: (4, 4)}
    assert summary.minutes == pytest.approx(16 * 2 / 50 / 60)


def test_channels_are_summarised_in_their_units(make_dataset: Callable[..., DataSet]) -> None:
    dataset = make_dataset()
    values = dataset.physical().astype(np.float64)
    for place, channel in enumerate(summarise(dataset).channels):
        found = (channel.minimum, channel.maximum, channel.mean, channel.std)
        one = values[:, place]
        expected = (one.min(), one.max(), one.mean(), one.std())
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        assert channel.unit == dataset.channels[place].unit
