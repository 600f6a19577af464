from __future__ import annotations

import hashlib
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.continual.scenario import Scenario, load_scenario, shipped
from fleet.continual.timeline import NEVER, Arrival, Timeline
from fleet.errors import DataError, InputError
from fleet.har import synthetic
from fleet.har.dataset import Channel, DataSet
from fleet.har.normalise import Normalisation
from fleet.har.partition import chronological
from fleet.har.population import LabelledWindows, Population
from fleet.har.rotation import rotate
from fleet.har.shifts import Gain, Rate, Remount

PLAIN = Normalisation(np.zeros(6, np.float32), np.ones(6, np.float32))
SOURCE, FLEET = (1, 2), (3, 4, 5)


@pytest.fixture(scope="module")
def dataset() -> DataSet:
    """Five people; the fourth never runs, and has lain down once."""
    whole = synthetic.make(people=5, windows_per_activity=12)
    running, lying = (whole.labels.index(label) for label in ("running", "lying"))
    fourth = whole.subject == 4
    gone = fourth & (whole.y == running)
    gone[np.flatnonzero(fourth & (whole.y == lying))[1:]] = True
    kept = np.flatnonzero(~gone)
    fields = {name: getattr(whole, name)[kept] for name in ("x", "y", "subject", "rec")}
    return replace(whole, **fields)


@pytest.fixture(scope="module")
def population(dataset: DataSet) -> Population:
    return Population(dataset, SOURCE, FLEET, None)


def scenario(*events: dict[str, Any], **fields: Any) -> Scenario:
    base = {"name": "mine", "about": "A test.", "periods": 8, "devices": 6}
    sizes = {"windows_per_period": 14, "test_windows_per_period": 7}
    return Scenario.model_validate({**base, **sizes, **fields, "events": events})


def everything(**fields: Any) -> Scenario:
    """Everything at once."""
    return scenario(
        {"kind": "shift", "at": 1, "shift": "remount:30+gain:10", "share": 0.5},
        {"kind": "shift", "at": 2, "until": 6, "shift": "rate:10+noise:20+remount:20"},
        {"kind": "shift", "at": 3, "ends": 5, "shift": "placement:20", "share": 0.3},
        {"kind": "classes", "at": 2, "count": 2},
        {"kind": "classes", "at": 5, "count": 0},
        {"kind": "prior", "at": 1, "concentration": 1.0, "every": 3},
        {"kind": "join", "at": 3, "share": 0.3},
        {"kind": "leave", "at": 6, "share": 0.5},
        **{"start_classes": 3, "label_fraction": 0.5, "label_delay": 2, "online": 0.6, **fields},
    )


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


def test_classes_appear_when_they_should_and_old_ones_keep_their_numbers(
    population: Population, dataset: DataSet
) -> None:
    order = ["lying", "running"]
    timeline = Timeline(everything(class_order=order), population, seed=0)
    assert timeline.labels[:3] == ("lying", "running", "walking")
    assert sorted(timeline.labels) == sorted(dataset.labels)
    assert [timeline.classes_at(p) for p in range(8)] == [3, 3, 5, 5, 5, 7, 7, 7]
    for period in range(8):
        seen = set()
        for device in range(6):
            rows = timeline.rows(device, period)
            held = timeline.rows(device, period, held_out=True)
            seen |= set(timeline.dataset.y[[*rows, *held]].tolist())
            names = {timeline.labels[y] for y in timeline.arrival(device, period, PLAIN).y}
            assert names == {dataset.labels[dataset.y[row]] for row in rows}
        assert seen <= set(range(timeline.classes_at(period)))
    base = timeline.source_dataset()
    assert base.labels == timeline.labels[:3]
    assert np.array_equal(base.x, timeline.dataset.x[timeline.dataset.y < 3])


def test_classes_that_never_appear_are_not_there(population: Population) -> None:
    few = scenario({"kind": "classes", "at": 2, "count": 1}, start_classes=2)
    timeline = Timeline(few, population, seed=0)
    assert timeline.labels == population.dataset.labels[:3]
    assert timeline.dataset.y.max() == 2


def test_a_person_without_a_class_has_none_and_others_have_all(population: Population) -> None:
    timeline = Timeline(scenario(windows_per_period=60), population, seed=0)
    running = timeline.labels.index("running")
    total = [sum(timeline.counts(d, p) for p in range(8)) for d in range(3)]
    assert total[1][running] == 0
    assert all(total[d].min() > 0 for d in (0, 2))
    assert all(each.sum() == 8 * 60 for each in total)
    lying = timeline.labels.index("lying")
    tested = [timeline.held_out(1, p, PLAIN).y for p in range(8)]
    # The only window of a class is trained on.
    assert lying not in set(np.concatenate(tested).tolist())
    assert all(len(y) == 7 for y in tested)


def test_a_person_without_any_class_that_has_appeared_sees_nothing_yet(
    population: Population,
) -> None:
    later = {"kind": "classes", "at": 3, "count": 0}
    order = ["running", "lying"]
    timeline = Timeline(scenario(later, start_classes=2, class_order=order), population, seed=0)
    # The fourth person never runs and has lain down once, which is trained on.
    assert set(timeline.arrival(1, 0, PLAIN).y.tolist()) == {1}
    sizes = [len(timeline.held_out(1, period, PLAIN).y) for period in range(8)]
    assert sizes == [0] * 3 + [7] * 5


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


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1000),
    joins=st.lists(st.tuples(st.integers(1, 7), st.sampled_from([0.2, 0.4])), max_size=2),
    leave=st.tuples(st.integers(1, 7), st.sampled_from([0.1, 0.2])),
)
def test_devices_join_once_and_only_those_leave_that_are_there(
    population: Population, seed: int, joins: list[tuple[int, float]], leave: tuple[int, float]
) -> None:
    events = [{"kind": "join", "at": at, "share": share} for at, share in joins]
    events.append({"kind": "leave", "at": leave[0], "share": leave[1]})
    timeline = Timeline(scenario(*events, devices=20), population, seed=seed)
    there = np.array([[timeline.present(d, p) for p in range(8)] for d in range(20)])
    for row in there.astype(int).tolist():
        # At most one coming and, after it, one going.
        steps = [b - a for a, b in pairwise(row) if a != b]
        assert steps in ([], [1], [-1], [1, -1])
    for period in range(8):
        came = sum(round(share * 20) for at, share in joins if at > period)
        gone = round(leave[1] * 20) if leave[0] <= period else 0
        assert there[:, period].sum() == 20 - came - gone
    absent = tuple(np.argwhere(~there)[0].tolist()) if not there.all() else None
    if absent is not None:
        assert not timeline.online(*absent)
        assert len(timeline.arrival(*absent, PLAIN).y) == 0
        assert len(timeline.held_out(*absent, PLAIN).y) == 0


def test_devices_are_online_as_often_as_stated(population: Population) -> None:
    timeline = Timeline(scenario(online=0.7, devices=100), population, seed=0)
    online = sum(timeline.online(d, p) for d in range(100) for p in range(8))
    assert 0.65 < online / 800 < 0.75


def test_devices_take_part_at_night_in_their_own_time_zone(population: Population) -> None:
    day = {"starts_h": 22, "hours": 8}
    timeline = Timeline(scenario(day=day, period_hours=6), population, seed=0)
    for device in range(6):
        # Middles of the periods are at 3, 9, 15 and 21 o'clock.
        assert [timeline.online(device, p) for p in range(8)] == [True, False, False, False] * 2
    wide = scenario(day={**day, "zones_h": 24}, period_hours=6, devices=100)
    spread = Timeline(wide, population, seed=0)
    share = np.mean([[spread.online(d, p) for p in range(4)] for d in range(100)], axis=0)
    assert (abs(share - 8 / 24) < 0.15).all()


def test_class_mixes_are_drawn_anew_when_they_should_be_and_measured_alike(
    population: Population,
) -> None:
    drawn = {"kind": "prior", "at": 2, "concentration": 0.5, "every": 3}
    timeline = Timeline(
        scenario(drawn, windows_per_period=400, test_windows_per_period=400), population, seed=0
    )
    shares = np.array([timeline.counts(0, p) / 400 for p in range(8)])
    moved = np.abs(np.diff(shares, axis=0)).sum(axis=1)
    assert [period + 1 for period in np.flatnonzero(moved > 0.5).tolist()] == [2, 5]
    others = np.array([timeline.counts(3, p) / 400 for p in range(8)])
    assert np.abs(shares[2:] - others[2:]).sum(axis=1).min() > 0.3
    held = np.bincount(timeline.held_out(0, 3, PLAIN).y, minlength=7) / 400
    assert np.abs(held - shares[3]).sum() < 0.2


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


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"start_classes": 8}, "scenario-classes"),
        ({"class_order": ["flying"]}, "scenario-classes"),
    ],
)
def test_a_data_set_without_the_scenarios_classes_is_refused(
    population: Population, fields: dict[str, Any], code: str
) -> None:
    with pytest.raises(InputError) as caught:
        Timeline(scenario(**fields), population, seed=0)
    assert caught.value.code == code


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
