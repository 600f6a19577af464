from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.continual.scenario import load_scenario, shipped
from fleet.continual.timeline import NEVER, Arrival, Timeline
from fleet.errors import DataError, InputError
from fleet.har.dataset import Channel, DataSet
from fleet.har.partition import chronological
from fleet.har.population import LabelledWindows, Population
from fleet.har.rotation import rotate
from fleet.har.shifts import Gain, Rate, Remount
from tests.fleet.continual.timelines import FLEET, PLAIN, SOURCE, everything, scenario


def content(*parts: Arrival | LabelledWindows) -> str:
    state = hashlib.sha256()
    for part in parts:
        for array in vars(part).values():
            state.update(array.tobytes())
    return state.hexdigest()


def all_of(timeline: Timeline, device: int, period: int) -> str:
    facts = (
        timeline.present(device, period),
        timeline.online(device, period),
        timeline.shift_at(device, period),
        timeline.classes_at(period),
    )
    arrival = timeline.arrival(device, period, PLAIN)
    held = timeline.held_out(device, period, PLAIN)
    return f"{facts} {content(arrival, held)}"


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**40),
    asked=st.permutations([(d, p) for d in (0, 3, 5) for p in (0, 2, 5, 7)]),
)
def test_what_a_device_sees_depends_on_seed_device_and_period_alone(
    population: Population, seed: int, asked: list[tuple[int, int]]
) -> None:
    one = Timeline(everything(), population, seed=seed)
    seen = {(d, p): all_of(one, d, p) for d, p in asked}
    two = Timeline(everything(), population, seed=seed)
    assert {(d, p): all_of(two, d, p) for d, p in sorted(asked)} == seen
    assert one.changes() == two.changes()
    other = Timeline(everything(), population, seed=seed + 1)
    assert {all_of(other, d, p) for d, p in asked} != set(seen.values())


def test_what_changes_later_does_not_touch_earlier_periods(population: Population) -> None:
    later = {"kind": "prior", "at": 5, "concentration": 1.0}
    gone = {"kind": "leave", "at": 6, "share": 0.5}
    drawn = {"kind": "prior", "at": 1, "concentration": 1.0}
    one = Timeline(scenario(drawn), population, seed=0)
    two = Timeline(scenario(drawn, later, gone, periods=12), population, seed=0)
    for device in range(6):
        assert [all_of(one, device, p) for p in range(5)] == [
            all_of(two, device, p) for p in range(5)
        ]
    assert all_of(one, 0, 5) != all_of(two, 0, 5)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), fraction=st.sampled_from([0.3, 0.6, 0.8]))
def test_no_row_to_train_on_is_ever_held_out_nor_shares_a_sample_with_one(
    population: Population, seed: int, fraction: float
) -> None:
    timeline = Timeline(everything(), population, seed=seed, train_fraction=fraction)
    grid = [(device, period) for device in range(6) for period in range(8)]
    trained = {int(row) for cell in grid for row in timeline.rows(*cell)}
    held = {int(row) for cell in grid for row in timeline.rows(*cell, held_out=True)}
    assert trained
    assert held
    for person in FLEET:
        share = chronological(timeline.dataset, person, fraction)
        assert not trained & set(share.test.tolist())
        assert not held & set(share.train.tolist())
    assert set(timeline.dataset.subject[sorted(trained | held)].tolist()) <= set(FLEET)


def test_windows_are_those_of_the_devices_person_in_time_order(population: Population) -> None:
    timeline = Timeline(everything(), population, seed=3)
    for device in range(6):
        for period in range(8):
            for held_out in (False, True):
                rows = timeline.rows(device, period, held_out=held_out)
                assert set(timeline.dataset.subject[rows].tolist()) <= {timeline.person(device)}
                times = list(zip(timeline.dataset.rec[rows].tolist(), rows.tolist(), strict=True))
                assert times == sorted(times)
    assert [timeline.person(device) for device in range(6)] == [3, 4, 5, 3, 4, 5]


def test_windows_come_again_only_when_the_person_has_no_more_of_the_class(
    population: Population,
) -> None:
    timeline = Timeline(scenario(periods=20), population, seed=1)
    for device in range(3):
        share = chronological(timeline.dataset, timeline.person(device), 0.6)
        counts = np.zeros(len(timeline.dataset.x), np.int64)
        for period in range(20):
            np.add.at(counts, timeline.rows(device, period), 1)
            for label in range(len(timeline.labels)):
                own = share.train[timeline.dataset.y[share.train] == label]
                if len(own):
                    assert counts[own].max() - counts[own].min() <= 1
        assert counts[share.train].min() >= 1


def test_the_arithmetic_is_that_of_the_shifts(population: Population, dataset: DataSet) -> None:
    shift = {"kind": "shift", "at": 1, "shift": "remount:30+gain:20+rate:10"}
    timeline = Timeline(scenario(shift), population, seed=9)
    before, rows = timeline.arrival(0, 0, PLAIN), timeline.rows(0, 0)
    assert np.array_equal(before.x, PLAIN.apply(dataset.physical(rows)))
    assert np.array_equal(before.y, dataset.y[rows])
    x = dataset.physical(timeline.rows(0, 4))
    for one in (Remount(30), Gain(20), Rate(10)):
        x = one.apply(x, dataset.channels, dataset.rate_hz, seed=9, device="device-00000")
    assert np.array_equal(timeline.arrival(0, 4, PLAIN).x, PLAIN.apply(x))


def test_a_device_keeps_its_direction_as_its_rotation_grows(
    population: Population, dataset: DataSet
) -> None:
    ramp = {"kind": "shift", "at": 0, "until": 4, "shift": "remount:40"}
    timeline = Timeline(scenario(ramp), population, seed=2)
    assert timeline.shift_at(1, 0) == "none"
    for period, share in ((1, 0.25), (2, 0.5), (4, 1.0), (7, 1.0)):
        assert timeline.shift_at(1, period) == f"remount:{40 * share:g}"
        turned = Remount(40 * share, 9 * share).rotation(2, timeline.name(1))
        rows = timeline.rows(1, period, held_out=True)
        wanted = rotate(dataset.physical(rows), dataset.channels, turned)
        assert np.array_equal(timeline.held_out(1, period, PLAIN).x, PLAIN.apply(wanted))


def test_shifts_that_overlap_add_up_by_kind_at_the_devices_that_they_touch(
    population: Population,
) -> None:
    half = {"kind": "shift", "at": 1, "shift": "remount:30+gain:10", "share": 0.5}
    more = {"kind": "shift", "at": 3, "ends": 6, "shift": "remount:25"}
    timeline = Timeline(scenario(half, more), population, seed=0)
    touched = [d for d in range(6) if timeline.shift_at(d, 1) != "none"]
    assert len(touched) == 3
    for device in range(6):
        first = "remount:30+gain:10" if device in touched else "none"
        both = "remount:55+gain:10" if device in touched else "remount:25"
        texts = [timeline.shift_at(device, period) for period in range(8)]
        assert texts == ["none", *[first] * 2, *[both] * 3, *[first] * 2]


def test_noise_is_never_the_same_twice_and_its_level_does_not_depend_on_the_period(
    population: Population, dataset: DataSet
) -> None:
    noisy = Timeline(scenario({"kind": "shift", "at": 0, "shift": "noise:50"}), population, seed=0)
    noises = [
        noisy.arrival(0, period, PLAIN).x - PLAIN.apply(dataset.physical(noisy.rows(0, period)))
        for period in range(8)
    ]
    assert abs(np.corrcoef(noises[0].ravel(), noises[1].ravel())[0, 1]) < 0.05
    held = noisy.held_out(0, 0, PLAIN).x
    plain = PLAIN.apply(dataset.physical(noisy.rows(0, 0, held_out=True)))
    size = held.size
    assert abs(np.corrcoef((held - plain).ravel(), noises[0].ravel()[:size])[0, 1]) < 0.05
    past = chronological(dataset, 3).train
    wanted = 0.5 * np.std(dataset.physical(past), axis=(0, 2))
    for noise in noises:
        assert np.std(noise, axis=(0, 2)) == pytest.approx(wanted, rel=0.1)


def test_counts_and_labels_are_those_of_the_arrival(population: Population) -> None:
    timeline = Timeline(everything(), population, seed=4)
    for device in range(6):
        for period in range(8):
            arrival = timeline.arrival(device, period, PLAIN)
            assert arrival.x.shape == (len(arrival.y), *timeline.shape)
            assert (arrival.x.dtype, arrival.y.dtype) == (np.float32, np.int64)
            counts = np.bincount(arrival.y, minlength=len(timeline.labels))
            assert np.array_equal(counts, timeline.counts(device, period))
            assert np.array_equal(arrival.known_at, timeline.known_at(device, period))


@settings(max_examples=10, deadline=None)
@given(fraction=st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]), delay=st.integers(0, 20))
def test_the_stated_share_of_windows_is_labelled_after_the_stated_delay(
    population: Population, fraction: float, delay: int
) -> None:
    few = scenario(label_fraction=fraction, label_delay=delay, windows_per_period=200)
    timeline = Timeline(few, population, seed=0)
    more = Timeline(scenario(windows_per_period=200), population, seed=0)
    labelled = 0
    for device in range(6):
        for period in range(8):
            known = timeline.known_at(device, period)
            assert set(known.tolist()) <= {period + delay, NEVER}
            assert len(known) == 200
            assert (more.known_at(device, period) == period).all()
            labelled += int((known != NEVER).sum())
    total = 6 * 8 * 200
    # Four standard deviations of a binomial.
    assert abs(labelled - fraction * total) <= 4 * np.sqrt(total * fraction * (1 - fraction))


def test_changes_are_told_in_order_with_their_devices(population: Population) -> None:
    timeline = Timeline(everything(), population, seed=0)
    changes = timeline.changes()
    assert [change.period for change in changes] == sorted(change.period for change in changes)
    texts = {change.text: change for change in changes}
    assert "placement:20 ends" in texts
    assert "rate:10+noise:20+remount:20, growing until 6" in texts
    assert texts["new: stairs_down, sitting"].period == 2
    assert texts["new: standing, lying"].period == 5
    assert len(texts["2 devices join"].devices) == 2
    left = texts["3 devices leave"].devices
    assert all(timeline.present(d, 5) and not timeline.present(d, 6) for d in left)
    half = texts["remount:30+gain:10"].devices
    assert half == tuple(d for d in range(6) if timeline.shift_at(d, 1) != "none")


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_scenario_runs_on_the_synthetic_fleet(
    population: Population, name: str
) -> None:
    timeline = Timeline(load_scenario(name), population, seed=0)
    last = timeline.scenario.periods - 1
    here = next(d for d in range(len(timeline)) if timeline.present(d, last))
    arrival = timeline.arrival(here, last, PLAIN)
    assert len(arrival.y) == timeline.scenario.windows_per_period
    assert len(timeline.held_out(here, last, PLAIN).y) == timeline.scenario.test_windows_per_period
    assert timeline.classes_at(last) == len(timeline.labels) == 7


def test_a_population_with_a_shift_of_its_own_is_refused(dataset: DataSet) -> None:
    with pytest.raises(InputError, match="re-mounted") as caught:
        Timeline(scenario(), Population(dataset, SOURCE, FLEET, Remount(35)), seed=0)
    assert caught.value.code == "scenario-shift"


def test_a_rotation_of_channels_without_axes_is_refused_at_once(dataset: DataSet) -> None:
    lone = replace(dataset, channels=tuple(Channel(f"c{i}", "m/s^2") for i in range(6)))
    turned = scenario({"kind": "shift", "at": 7, "shift": "gain:5+remount:5"})
    with pytest.raises(DataError) as caught:
        Timeline(turned, Population(lone, SOURCE, FLEET, None), seed=0)
    assert caught.value.code == "no-triples"


@pytest.mark.parametrize(("device", "period"), [(-1, 0), (6, 0), (0, -1), (0, 8)])
def test_there_is_nothing_outside_of_the_fleet_or_its_time(
    population: Population, device: int, period: int
) -> None:
    timeline = Timeline(scenario(), population, seed=0)
    for ask in (timeline.present, timeline.online, timeline.shift_at, timeline.rows):
        with pytest.raises(IndexError):
            ask(device, period)
