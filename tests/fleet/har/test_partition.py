from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.errors import DataError
from fleet.har.canonical import read
from fleet.har.dataset import Channel, DataSet
from fleet.har.partition import chronological, device_name, pool, split_people

Make = Callable[..., DataSet]

WINDOW = 4


@st.composite
def recordings(draw: st.DrawFn) -> tuple[DataSet, list[tuple[int, int]]]:
    """A person's data set with each window's true (recording, first sample).

    Recordings consist of segments on one sample axis; windows may be rejected at random (as a
    majority rule does), and the signal may be so flat that samples prove nothing.
    """
    stride = draw(st.sampled_from([1, 2, 3, 4]))
    values = draw(st.sampled_from([1, 2, 60_000]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    windows, labels, recs, places = [], [], [], []
    for rec in range(draw(st.integers(1, 3))):
        start = 0
        for _ in range(draw(st.integers(1, 4))):
            length = draw(st.integers(WINDOW, 30))
            signal = random.integers(-values // 2, values - values // 2, (1, length))
            label = draw(st.integers(0, 2))
            mixed, rejecting = draw(st.booleans()), draw(st.booleans())
            for first in range(0, length - WINDOW + 1, stride):
                if rejecting and random.random() < 0.3:
                    continue
                windows.append(signal[:, first : first + WINDOW])
                labels.append(int(random.integers(3)) if mixed else label)
                recs.append(rec)
                places.append((rec, start + first))
            start += length
    if not windows:
        windows, labels, recs, places = [np.zeros((1, WINDOW))], [0], [0], [(0, 0)]
    dataset = DataSet(
        name="drawn",
        labels=("a", "b", "c"),
        channels=(Channel("acc", "g"),),
        rate_hz=10.0,
        window=WINDOW,
        stride=stride,
        x=np.stack(windows).astype(np.int16),
        scale=np.ones(1, np.float32),
        y=np.array(labels, np.int16),
        subject=np.full(len(windows), 5, np.int16),
        rec=np.array(recs, np.int32),
    )
    return dataset, places


@settings(max_examples=300)
@given(recordings(), st.sampled_from([0.3, 0.6, 0.9]))
def test_no_training_window_shares_a_sample_with_a_test_window(
    drawn: tuple[DataSet, list[tuple[int, int]]], fraction: float
) -> None:
    dataset, places = drawn
    share = chronological(dataset, 5, fraction)
    tested = {
        (rec, at + k) for rec, at in (places[row] for row in share.test) for k in range(WINDOW)
    }
    for rec, at in (places[row] for row in share.train):
        assert not {(rec, at + k) for k in range(WINDOW)} & tested


@settings(max_examples=100)
@given(recordings())
def test_no_training_window_is_a_copy_of_a_test_window(
    drawn: tuple[DataSet, list[tuple[int, int]]],
) -> None:
    dataset, _ = drawn
    share = chronological(dataset, 5)
    tested = {dataset.x[row].tobytes() for row in share.test}
    assert not {dataset.x[row].tobytes() for row in share.train} & tested


@settings(max_examples=100)
@given(recordings(), st.sampled_from([0.3, 0.6, 0.9]))
def test_every_class_is_cut_by_time_and_none_is_tested_alone(
    drawn: tuple[DataSet, list[tuple[int, int]]], fraction: float
) -> None:
    dataset, _ = drawn
    share = chronological(dataset, 5, fraction)
    for label in range(3):
        rows = np.flatnonzero(dataset.y == label)
        tested = share.test[dataset.y[share.test] == label]
        trained = share.train[dataset.y[share.train] == label]
        past = min(max(math.floor(len(rows) * fraction + 1e-9), 1), max(len(rows) - 1, 1))
        np.testing.assert_array_equal(tested, rows[past:])
        assert set(trained) <= set(rows[:past])


def counting(rows: int, **changes: object) -> DataSet:
    """One class and recording of windows 4 / 2 over the signal 0, 1, 2, ..."""
    x = np.arange(WINDOW)[None, None, :] + 2 * np.arange(rows)[:, None, None]
    fields: dict[str, object] = {
        "name": "counting",
        "labels": ("a", "b"),
        "channels": (Channel("acc", "g"),),
        "rate_hz": 10.0,
        "window": WINDOW,
        "stride": 2,
        "x": x.astype(np.int16),
        "scale": np.ones(1, np.float32),
        "y": np.zeros(rows, np.int16),
        "subject": np.ones(rows, np.int16),
        "rec": np.zeros(rows, np.int32),
    }
    return DataSet(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_window_that_straddles_the_cut_is_dropped() -> None:
    share = chronological(counting(10), 1)
    assert share.train.tolist() == [0, 1, 2, 3, 4]
    assert share.test.tolist() == [6, 7, 8, 9]
    assert share.train.dtype == share.test.dtype == np.int64


def test_a_segment_border_at_the_cut_keeps_the_window() -> None:
    x = counting(10).x.copy()
    x[6:] += 1000
    assert chronological(counting(10, x=x), 1).train.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_recording_stored_twice_does_not_leak() -> None:
    one = counting(10).x
    twice = counting(20, x=np.concatenate([one, one]), rec=np.repeat([7, 9], 10).astype(np.int32))
    share = chronological(twice, 1)
    # Test is copy rows 2..9 of rec 9; their originals and the overlapping neighbours go.
    assert share.test.tolist() == list(range(12, 20))
    assert share.train.tolist() == [0, 10]


def test_time_is_the_order_of_recordings_and_not_of_rows() -> None:
    rec = np.repeat([2, 1], 5).astype(np.int32)
    share = chronological(counting(10, rec=rec, y=np.zeros(10, np.int16)), 1)
    assert share.test.tolist() == [1, 2, 3, 4]
    assert set(share.train) <= {0, 5, 6, 7, 8, 9}


def test_the_only_window_of_a_class_trains() -> None:
    y = np.array([1] + [0] * 9, np.int16)
    share = chronological(counting(10, y=y), 1)
    assert 0 in share.train
    assert set(counting(10, y=y).y[share.test]) == {0}


def test_a_person_with_too_little_data_is_not_usable_and_says_why() -> None:
    lonely = chronological(counting(1), 1)
    assert not lonely.usable
    assert lonely.reason == "person-01 has no test windows"
    straddling = chronological(counting(2), 1)
    assert not straddling.usable
    assert straddling.reason == "person-01 has no train windows"
    plenty = chronological(counting(10), 1)
    assert plenty.usable
    assert plenty.reason == ""


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_fractions_outside_zero_to_one_are_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="train_fraction must be in"):
        chronological(counting(4), 1, fraction)
    with pytest.raises(DataError, match="fleet_fraction must be in"):
        split_people(range(10), 0, fraction)


@given(st.sets(st.integers(0, 500), min_size=4, max_size=40), st.integers(0, 2**31))
def test_people_are_divided_without_overlap_or_loss(people: set[int], seed: int) -> None:
    source, fleet = split_people(people, seed)
    assert sorted(source + fleet) == sorted(people)
    assert len(fleet) == len(people) // 2
    assert list(source) == sorted(source)
    assert split_people(sorted(people, reverse=True), seed) == (source, fleet)


def test_the_seed_decides_who_is_who() -> None:
    assert len({split_people(range(1, 31), seed) for seed in range(20)}) == 20


@pytest.mark.parametrize(("fraction", "size"), [(0.3, 3), (0.5, 5), (0.8, 8)])
def test_the_fraction_decides_the_size_of_the_fleet(fraction: float, size: int) -> None:
    assert len(split_people(range(10), 0, fraction)[1]) == size


@pytest.mark.parametrize(("count", "fraction"), [(0, 0.5), (2, 0.5), (3, 0.3), (10, 0.9)])
def test_too_few_people_are_refused_with_the_numbers(count: int, fraction: float) -> None:
    with pytest.raises(DataError) as caught:
        split_people(range(count), 0, fraction)
    assert caught.value.code == "too-few-people"
    assert f"{count} people" in caught.value.message


def test_devices_are_named_by_their_person() -> None:
    assert [device_name(n) for n in (1, 42, 123)] == ["person-01", "person-42", "person-123"]


def test_a_pool_is_the_rows_of_its_people(make_dataset: Make) -> None:
    dataset = make_dataset()
    np.testing.assert_array_equal(pool(dataset, [2]), np.flatnonzero(dataset.subject == 2))
    np.testing.assert_array_equal(pool(dataset, {2, 1}), np.arange(16))
    with pytest.raises(DataError, match=r"no subject \[3\]"):
        pool(dataset, [1, 3])


@pytest.mark.parametrize("name", ["hapt", "motionsense", "hugadb"])
def test_real_people_are_usable_and_keep_most_training_windows(shared_har: Path, name: str) -> None:
    dataset = read(shared_har / name)
    for person in dataset.subjects[:8]:
        share = chronological(dataset, person)
        assert share.usable
        total = np.count_nonzero(dataset.subject == person)
        assert len(share.train) > 0.35 * total
        assert len(share.test) < 0.5 * total


def test_the_duplicate_motionsense_recording_is_on_one_side_only(shared_har: Path) -> None:
    dataset = read(shared_har / "motionsense")
    share = chronological(dataset, 1)
    tested = {dataset.x[row].tobytes() for row in share.test}
    assert not {dataset.x[row].tobytes() for row in share.train} & tested
