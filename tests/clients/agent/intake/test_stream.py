from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from clients.agent.intake import Stream
from clients.agent.intake.stream import JUMP_S
from clients.agent.store import WindowBatch
from fleet.errors import DataError, InputError
from fleet.har import sources, synthetic
from fleet.har.dataset import DataSet
from fleet.har.windows import segment
from tests.clients.agent.intake.recordings import rejoined, small_spec, streamed

Array = NDArray[np.float64]


def line(count: int, *, start_s: float = 0.0, rate_hz: float = 50.0) -> tuple[Array, Array]:
    times = start_s + np.arange(count) / rate_hz
    return times, np.stack([np.arange(count) * 1.5, -np.arange(count) / 3], axis=1)


def joined(batches: list[WindowBatch]) -> tuple[NDArray[Any], Array]:
    signals = np.concatenate([batch.signals for batch in batches])
    return signals, np.concatenate([batch.start_s for batch in batches])


def test_at_the_bases_rate_samples_stay_as_they_are() -> None:
    times, values = line(30, start_s=1.7e9)
    batch = Stream(small_spec()).push(times, values)
    np.testing.assert_array_equal(batch.signals, segment(values.astype(np.float32), 8, 4))
    np.testing.assert_allclose(batch.start_s - 1.7e9, 0.08 * np.arange(6), atol=1e-6)
    np.testing.assert_allclose(batch.end_s - batch.start_s, 0.14, atol=1e-6)
    assert batch.reach == 1


steps = st.one_of(
    st.just(0.02),
    st.floats(0.001, 0.099),
    st.sampled_from([0.0, -0.5, 0.4, 4000.0, 0.0201, 0.0199]),
)


@given(
    st.lists(steps, min_size=1, max_size=120),
    st.lists(st.integers(0, 120), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_how_samples_are_cut_into_pieces_never_matters(
    gaps: list[float], cuts: list[int], dense: bool, restarted: bool
) -> None:
    spec = small_spec(source_rate_hz=100.0 if dense else 50.0)
    times = 1000.0 + np.cumsum(gaps)
    values = np.stack([np.sin(times * 3), np.arange(len(times))], axis=1)
    values[5:6] = np.nan
    whole = Stream(spec)
    expected = whole.push(times, values)
    pieces, batches = Stream(spec), []
    bounds = sorted({0, len(times), *(min(cut, len(times)) for cut in cuts)})
    for first, end in pairwise(bounds):
        batches.append(pieces.push(times[first:end], values[first:end]))
        if restarted:
            pieces = Stream.restored(spec, json.loads(json.dumps(pieces.state())))
    signals, start_s = joined(batches)
    np.testing.assert_array_equal(signals, expected.signals)
    np.testing.assert_array_equal(start_s, expected.start_s)
    assert pieces.tally == whole.tally
    assert pieces.state() == whole.state()


@given(
    st.floats(30, 90),
    st.floats(0, 0.006),
    st.integers(0, 2**32 - 1),
)
def test_a_straight_line_stays_one_at_any_near_rate(
    rate_hz: float, jitter_s: float, seed: int
) -> None:
    times, _ = line(200, rate_hz=rate_hz)
    times = np.sort(times + np.random.default_rng(seed).uniform(0, jitter_s, len(times)))
    batch = Stream(small_spec()).push(times, np.stack([times, -2 * times], axis=1))
    assert len(batch) > 10
    at = batch.start_s[:, None] + np.arange(8) / 50
    # A sample within a hundredth of a period of the grid is taken as it is.
    np.testing.assert_allclose(batch.signals[:, 0], at, atol=0.0003)
    np.testing.assert_allclose(batch.signals[:, 1], -2 * at, atol=0.0005)


def test_a_dense_source_is_averaged_so_that_it_does_not_alias() -> None:
    times, _ = line(2000, rate_hz=200)
    shaken = np.stack([np.sin(2 * np.pi * 49.0 * times), np.ones_like(times)], axis=1)
    naive = Stream(small_spec()).push(times, shaken)
    averaged = Stream(small_spec(source_rate_hz=200.0)).push(times, shaken)
    assert np.abs(naive.signals[:, 0]).max() > 0.9
    assert np.abs(averaged.signals[1:, 0]).max() < 0.05
    np.testing.assert_allclose(averaged.signals[:, 1], 1.0)


@given(st.data())
def test_no_window_spans_a_gap_or_a_jump(data: st.DataObject) -> None:
    leaps = st.sampled_from([-100.0, -0.03, 0.2, 10.0, 2 * JUMP_S])
    times, marks, now = [], [], 0.0
    for stretch in range(data.draw(st.integers(1, 5))):
        count = data.draw(st.integers(1, 30))
        times.append(now + np.arange(count) / 50)
        marks.append(np.full(count, float(stretch)))
        now = float(times[-1][-1]) + data.draw(leaps)
    mark = np.concatenate(marks)
    stream = Stream(small_spec())
    batch = stream.push(np.concatenate(times), np.stack([mark, mark], axis=1))
    assert all(len(np.unique(signal)) == 1 for signal in batch.signals)
    assert len(batch) == sum(max(0, 1 + (len(part) - 8) // 4) for part in marks)
    assert stream.tally["segments"] == len(marks)


def test_everything_odd_is_counted() -> None:
    stream = Stream(small_spec())
    times = np.array([0.0, 0.02, 0.02, 0.04, 1.0, 0.5, 9000.0, np.nan, 9000.02])
    values = np.ones((9, 2))
    values[3, 0] = np.inf
    stream.push(times, values)
    assert +stream.tally == {
        "samples": 9,
        "not_finite": 2,
        "duplicates": 1,
        "gaps": 1,
        "jumps_back": 1,
        "jumps_forward": 1,
        "segments": 4,
    }


def test_units_and_signs_become_the_bases() -> None:
    times, values = line(8)
    batch = Stream(small_spec(factors=(-9.80665, 1.0))).push(times, values)
    np.testing.assert_array_equal(batch.signals[0, 0], (values[:, 0] * -9.80665).astype("f4"))
    np.testing.assert_array_equal(batch.signals[0, 1], values[:, 1].astype("f4"))


def test_what_a_half_cannot_hold_is_dropped() -> None:
    times, values = line(9)
    values[3] = 1e6
    stream = Stream(small_spec(dtype="float16", window=4, stride=4))
    assert stream.push(times, values).signals.dtype == np.float16
    assert stream.tally["not_finite"] == 1


def test_a_state_of_another_spec_ends_the_segment() -> None:
    stream = Stream(small_spec())
    stream.push(*line(20))
    other = Stream.restored(small_spec(stride=8), stream.state())
    other.push(*line(20, start_s=0.4))
    assert other.tally["segments"] == 2


def test_samples_need_the_specs_columns() -> None:
    with pytest.raises(InputError, match=r"values \(n, 2\)"):
        Stream(small_spec()).push(np.zeros(3), np.zeros((3, 3)))


def check_rejoined(dataset: DataSet, subject: int) -> None:
    rows = np.flatnonzero(dataset.subject == subject)
    times, values = streamed(rejoined(dataset, rows), dataset.rate_hz)
    spec = small_spec(
        columns=tuple(channel.name for channel in dataset.channels),
        factors=(1.0,) * len(dataset.channels),
        rate_hz=dataset.rate_hz,
        window=dataset.window,
        stride=dataset.stride,
    )
    stream = Stream(spec)
    pieces = np.array_split(np.arange(len(times)), 7)
    signals = joined([stream.push(times[piece], values[piece]) for piece in pieces])[0]
    np.testing.assert_array_equal(signals, dataset.physical(rows))


def test_a_data_sets_windows_come_back_bit_for_bit_when_streamed() -> None:
    for subject in (1, 2):
        check_rejoined(synthetic.make(people=2, windows_per_activity=6), subject)


def test_hapts_windows_come_back_bit_for_bit_when_streamed() -> None:
    try:
        dataset = sources.find("hapt")
    except DataError:
        pytest.skip("HAPT is not at hand: FLEET_DATA names no folder with it")
    for subject in dataset.subjects[:2]:
        check_rejoined(dataset, subject)
