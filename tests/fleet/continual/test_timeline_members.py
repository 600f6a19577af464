from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.continual.timeline import Timeline
from fleet.errors import InputError
from fleet.har.dataset import DataSet
from fleet.har.population import Population
from tests.fleet.continual.timelines import PLAIN, everything, scenario


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
