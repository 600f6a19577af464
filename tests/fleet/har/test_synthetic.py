from __future__ import annotations

import time

import numpy as np
import pytest

from fleet.errors import InputError
from fleet.har import normalise, partition, shifts, synthetic
from fleet.har.dataset import DataSet, digest


@pytest.fixture(scope="module")
def dataset() -> DataSet:
    return synthetic.make(people=16)


def test_it_has_the_shape_of_a_waist_sensor_set(dataset: DataSet) -> None:
    assert dataset.name == "synthetic"
    assert dataset.subjects == tuple(range(1, 17))
    assert dataset.x.shape == (16 * 7 * 28, 6, 128)
    assert (dataset.rate_hz, dataset.window, dataset.stride) == (50, 128, 64)
    assert [channel.unit for channel in dataset.channels] == ["m/s^2"] * 3 + ["rad/s"] * 3
    for person in dataset.subjects:
        assert np.bincount(dataset.y[dataset.subject == person]).tolist() == [28] * 7


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    one, again, other = (synthetic.make(2, seed, 4) for seed in (3, 3, 4))
    assert digest(one) == digest(again) != digest(other)


def test_a_person_does_not_depend_on_how_many_others_there_are() -> None:
    few, many = synthetic.make(2, 0, 4), synthetic.make(5, 0, 4)
    np.testing.assert_array_equal(few.x, many.x[many.subject <= 2])


def test_neighbours_in_a_segment_overlap_by_half_and_segments_do_not() -> None:
    dataset = synthetic.make(2, 0, 10)
    same = (np.diff(dataset.rec) == 0) & (np.diff(dataset.y) == 0)
    overlap = (dataset.x[:-1, :, 64:] == dataset.x[1:, :, :64]).all(axis=(1, 2))
    np.testing.assert_array_equal(overlap, same)


def test_the_signals_are_plausible(dataset: DataSet) -> None:
    values = dataset.physical()
    still = values[dataset.y >= 4]
    np.testing.assert_allclose(np.linalg.norm(still[:, :3].mean(axis=2), axis=1), 9.8, atol=0.6)
    assert still[:, :3].std(axis=2).max() < 1
    up = [values[dataset.y == label, 0].mean() for label in range(7)]
    assert up[5] == pytest.approx(9.8, abs=0.3)
    assert abs(up[6]) < 4
    energy = [values[dataset.y == label, 0].std(axis=1).mean() for label in range(7)]
    assert energy[1] > 2 * energy[0] > 4 * energy[5]


def test_the_gait_has_the_pace_of_steps(dataset: DataSet) -> None:
    walking = dataset.physical(dataset.y == 0)[:, 0]
    spectrum = np.abs(np.fft.rfft(walking - walking.mean(axis=1, keepdims=True), axis=1)).mean(0)
    peak = np.fft.rfftfreq(128, 1 / 50)[spectrum.argmax()]
    assert 1.4 < peak < 2.4


def test_sixteen_people_are_made_in_two_seconds() -> None:
    begun = time.process_time()
    synthetic.make(people=16)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "sizes", [{"people": 0}, {"people": 1001}, {"windows_per_activity": 1}, {"recordings": 0}]
)
def test_impossible_sizes_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match="not"):
        synthetic.make(**sizes)


def features(x: np.ndarray) -> np.ndarray:
    """Mean and deviation of every channel."""
    parts = [x.mean(axis=2), x.std(axis=2), np.ones((len(x), 1))]
    return np.concatenate(parts, axis=1).astype(np.float64)


def test_a_model_of_the_source_people_works_on_others_and_loses_clearly_when_rotated(
    dataset: DataSet,
) -> None:
    clean, rotated = [], []
    for seed in range(4):
        source, fleet = partition.split_people(dataset.subjects, seed)
        scaling, shift = normalise.fit(dataset, source), shifts.Remount(35)
        rows = partition.pool(dataset, source)
        inputs = features(scaling.apply(dataset.physical(rows)))
        targets = np.eye(7)[dataset.y[rows]]
        ridge = inputs.T @ inputs + 10 * np.eye(inputs.shape[1])
        weights = np.linalg.solve(ridge, inputs.T @ targets)
        for person in fleet:
            rows = partition.pool(dataset, [person])
            x, y = dataset.physical(rows), dataset.y[rows]
            rotation = shift.rotation(seed, partition.device_name(person))
            turned = shifts.rotate(x, dataset.channels, rotation)
            for seen, scores in ((x, clean), (turned, rotated)):
                guess = (features(scaling.apply(seen)) @ weights).argmax(axis=1)
                scores.append((guess == y).mean())
    assert 0.85 < np.mean(clean) < 0.98
    assert np.mean(rotated) < np.mean(clean) - 0.15


def test_the_form_of_uci_har_has_the_same_signals_without_running_and_body_acceleration() -> None:
    six, nine = synthetic.make(2, 0, 4), synthetic.make_nine(2, 0, 4)
    assert nine.x.shape == (2 * 6 * 4, 9, 128)
    assert nine.labels == tuple(label for label in six.labels if label != "running")
    kept = six.y != six.labels.index("running")
    np.testing.assert_array_equal(nine.x[:, :6], six.x[kept])
    assert [nine.labels[y] for y in nine.y] == [six.labels[y] for y in six.y[kept]]
    physical = nine.physical()
    still = physical[nine.y >= nine.labels.index("sitting")]
    assert abs(float(still[:, 6:].mean())) < 0.1
    motion = physical[:, :3] - physical[:, 6:]
    # What is taken away is gravity, as good as constant within a window.
    assert float(motion.std(axis=2).max()) < 0.01
    assert len(shifts.parse("remount:35").apply(physical, nine.channels, 50, seed=0, device="a"))
