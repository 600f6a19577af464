from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fleet.config import RunConfig
from fleet.errors import DataError, InputError
from fleet.har import synthetic
from fleet.har.dataset import Channel, DataSet
from fleet.har.normalise import Normalisation, fit
from fleet.har.partition import chronological
from fleet.har.population import LabelledWindows, Population, share_windows
from fleet.har.shifts import parse
from fleet.har.virtual import VirtualFleet, _counts, virtual_fleet

PLAIN = Normalisation(np.zeros(6, np.float32), np.ones(6, np.float32))
# Everything that may differ from device to device, at once.
VARIED = "remount:10+gain:20+rate:5+noise:10+placement:10"


@pytest.fixture(scope="module")
def dataset() -> DataSet:
    """Eight people, of whose walking only a third is kept, so that classes are of unequal size."""
    whole = synthetic.make(people=8, windows_per_activity=24)
    kept = np.flatnonzero((whole.y != 0) | (np.arange(len(whole.y)) % 3 == 0))
    fields = {name: getattr(whole, name)[kept] for name in ("x", "y", "subject", "rec")}
    return replace(whole, **fields)


def fleet_of(dataset: DataSet, **changes: Any) -> VirtualFleet:
    config = RunConfig(**{"shift": "remount:35", **changes})
    return virtual_fleet(config, Population(dataset, (1, 2, 3), (4, 5, 6, 8), parse(config.shift)))


def content(*parts: LabelledWindows) -> str:
    state = hashlib.sha256()
    for part in parts:
        state.update(part.x.tobytes())
        state.update(part.y.tobytes())
    return state.hexdigest()


def shares_of(dataset: DataSet, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    counts = np.bincount(dataset.y[rows], minlength=len(dataset.labels))
    return counts / counts.sum()


def test_where_persons_are_devices_the_windows_have_the_digest_that_they_always_had(
    make_dataset: Callable[..., DataSet],
) -> None:
    # Of the person's own windows, taken before there were virtual devices.
    config = RunConfig(seed=7, train_fraction=0.6, shift="remount:35")
    population = Population(make_dataset(), (1,), (2,), parse(config.shift))
    past, future = virtual_fleet(config, population).windows(0, PLAIN)
    digest = hashlib.sha256(past.x.tobytes() + future.x.tobytes()).hexdigest()
    assert digest == "3b4ab6d54b32fe41fb9a9f2df2a84b5830a363f531028a5cc844794976640abf"


@pytest.mark.parametrize("shift", ["none", "remount:35", "gain:20+rate:5+noise:10"])
def test_where_persons_are_devices_each_has_all_windows_of_its_person_bit_for_bit(
    dataset: DataSet, shift: str
) -> None:
    fleet = fleet_of(dataset, shift=shift)
    normalisation = fit(dataset, fleet.population.source)
    assert len(fleet) == 4
    for partition, person in enumerate(fleet.population.fleet):
        share, past, future = share_windows(
            fleet.population, person, normalisation, train_fraction=0.6, seed=0
        )
        assert (fleet.name(partition), fleet.person(partition)) == (share.name, person)
        assert np.array_equal(fleet.share(partition).train, share.train)
        assert np.array_equal(fleet.share(partition).test, share.test)
        assert content(*fleet.windows(partition, normalisation)) == content(past, future)


def test_names_sort_as_partition_ids_do_and_devices_go_round_the_people(dataset: DataSet) -> None:
    fleet = fleet_of(dataset, devices=100_000)
    assert len(fleet) == 100_000
    assert [fleet.name(p) for p in (0, 42, 99_999)] == [
        "device-00000",
        "device-00042",
        "device-99999",
    ]
    assert [fleet.person(p) for p in range(6)] == [4, 5, 6, 8, 4, 5]


@pytest.mark.parametrize("partition", [-1, 3])
def test_there_is_no_device_outside_of_the_fleet(dataset: DataSet, partition: int) -> None:
    fleet = fleet_of(dataset, devices=3)
    for ask in (fleet.name, fleet.person, fleet.share):
        with pytest.raises(IndexError, match="3 devices"):
            ask(partition)


def test_the_same_device_is_the_same_in_another_fleet_object_and_in_any_order(
    dataset: DataSet,
) -> None:
    changes = {"devices": 12, "windows_per_device": 20, "class_mix": 0.7, "variation": VARIED}
    one, two = fleet_of(dataset, **changes), fleet_of(dataset, **changes)
    forth = [content(*one.windows(p, PLAIN)) for p in range(12)]
    back = [content(*two.windows(p, PLAIN)) for p in reversed(range(12))]
    assert forth == back[::-1]
    assert len(set(forth)) == 12
    other = fleet_of(dataset, **changes, seed=1)
    assert content(*other.windows(3, PLAIN)) != forth[3]


def test_more_devices_leave_those_that_were_there_as_they_were(dataset: DataSet) -> None:
    few, many = (
        fleet_of(dataset, devices=n, windows_per_device=20, variation=VARIED) for n in (8, 800)
    )
    for partition in range(8):
        assert content(*few.windows(partition, PLAIN)) == content(*many.windows(partition, PLAIN))


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_no_device_of_a_person_trains_on_samples_that_any_device_of_that_person_is_tested_on(
    dataset: DataSet, mix: float
) -> None:
    fleet = fleet_of(dataset, devices=120, windows_per_device=15, class_mix=mix)
    for first in range(4):
        shares = [fleet.share(partition) for partition in range(first, 120, 4)]
        whole = chronological(dataset, fleet.person(first), 0.6)
        past = np.unique(np.concatenate([share.train for share in shares]))
        future = np.unique(np.concatenate([share.test for share in shares]))
        assert set(past) <= set(whole.train)
        assert set(future) <= set(whole.test)
        assert not overlapping(dataset, past, future)


def overlapping(dataset: DataSet, one: NDArray[np.int64], two: NDArray[np.int64]) -> list[Any]:
    """Pairs of windows of one recording that agree where neighbours would share their samples."""
    half = dataset.window - dataset.stride
    pairs = [(a, b) for a, b in product(one, two) if dataset.rec[a] == dataset.rec[b]]
    x = dataset.x
    return [
        (a, b)
        for a, b in pairs
        if np.array_equal(x[a][:, -half:], x[b][:, :half])
        or np.array_equal(x[b][:, -half:], x[a][:, :half])
        or np.array_equal(x[a], x[b])
    ]


def test_the_search_for_shared_samples_finds_neighbours(dataset: DataSet) -> None:
    rows = np.flatnonzero(dataset.rec == dataset.rec[0])
    assert overlapping(dataset, rows[:3], rows[1:4])


def test_a_device_holds_one_range_of_time_of_every_class(dataset: DataSet) -> None:
    fleet = fleet_of(dataset, devices=40, windows_per_device=21)
    starts = set()
    for partition in range(0, 40, 4):
        rows = fleet.share(partition).train
        whole = chronological(dataset, fleet.person(partition), 0.6).train
        assert len(rows) == 21
        for label in np.unique(dataset.y[rows]):
            own, all_of_class = (r[dataset.y[r] == label] for r in (rows, whole))
            at = int(np.searchsorted(all_of_class, own[0]))
            assert np.array_equal(own, all_of_class[at : at + len(own)])
            starts.add(at)
    assert len(starts) > 2


def test_a_limit_holds_for_training_and_test_and_one_above_what_there_is_takes_all(
    dataset: DataSet,
) -> None:
    few = fleet_of(dataset, devices=4, windows_per_device=10).share(0)
    assert (len(few.train), len(few.test)) == (10, 10)
    whole = chronological(dataset, 4, 0.6)
    for limit in (0, 10_000):
        many = fleet_of(dataset, devices=4, windows_per_device=limit).share(0)
        assert np.array_equal(many.train, whole.train)
        assert np.array_equal(many.test, whole.test)


def test_without_a_mix_or_with_a_high_one_classes_are_as_the_person_has_them(
    dataset: DataSet,
) -> None:
    for mix in (0.0, 1e6):
        fleet = fleet_of(dataset, devices=20, windows_per_device=30, class_mix=mix)
        for partition in range(20):
            whole = shares_of(dataset, chronological(dataset, fleet.person(partition)).train)
            own = shares_of(dataset, fleet.share(partition).train)
            assert np.abs(own - whole).max() <= 1.5 / 30


def test_a_low_mix_leaves_a_device_few_classes_and_its_tests_as_they_were(
    dataset: DataSet,
) -> None:
    mixed = fleet_of(dataset, devices=100, windows_per_device=20, class_mix=0.1)
    plain = fleet_of(dataset, devices=100, windows_per_device=20)
    largest = []
    for partition in range(100):
        share = mixed.share(partition)
        assert 1 <= len(share.train) <= 20
        largest.append(shares_of(dataset, share.train).max())
        assert np.array_equal(share.test, plain.share(partition).test)
    assert np.mean(largest) > 0.85


def test_mixes_scatter_about_the_persons_own(dataset: DataSet) -> None:
    fleet = fleet_of(dataset, devices=1600, windows_per_device=14, class_mix=7.0)
    own = np.array([shares_of(dataset, fleet.share(p).train) for p in range(0, 1600, 4)])
    whole = shares_of(dataset, chronological(dataset, 4).train)
    assert own.mean(axis=0) == pytest.approx(whole, abs=0.03)
    # Of Dir(a p) the variance is p (1 - p) / (a + 1); rounding to 14 windows adds a little.
    assert own.std(axis=0) == pytest.approx(np.sqrt(whole * (1 - whole) / 8), abs=0.03)


@pytest.mark.parametrize("mix", [1e-300, 1e-6, 1e-3])
def test_a_vanishing_mix_leaves_one_class_and_no_warning(dataset: DataSet, mix: float) -> None:
    fleet = fleet_of(dataset, devices=20, class_mix=mix)
    for partition in range(20):
        assert len(np.unique(dataset.y[fleet.share(partition).train])) == 1


@given(
    held=st.lists(st.integers(1, 500), min_size=1, max_size=9),
    limit=st.integers(0, 200),
    seed=st.integers(0, 10**6),
    mix=st.floats(0.01, 1e4),
)
def test_counts_keep_to_what_is_held_the_limit_and_the_proportions(
    held: list[int], limit: int, seed: int, mix: float
) -> None:
    have = np.array(held)
    shares = np.random.default_rng(seed).dirichlet(mix * have / have.sum())
    counts = _counts(have, shares, limit)
    total = counts.sum()
    assert (counts >= 0).all()
    assert (counts <= have).all()
    assert 1 <= total <= (limit or have.sum())
    assert np.abs(counts - total * shares).max() <= 1 + 1e-6


def test_all_windows_are_taken_where_the_proportions_are_those_that_are_held() -> None:
    have = np.array([7, 11, 13, 3])
    assert _counts(have, have / have.sum(), 0).tolist() == [7, 11, 13, 3]


def test_what_a_variation_calls_common_differs_from_device_to_device(dataset: DataSet) -> None:
    plain = fleet_of(dataset, devices=16, shift="none")
    common = fleet_of(dataset, devices=16, shift="gain:50")
    varied = fleet_of(dataset, devices=16, shift="none", variation="gain:50")
    stronger: dict[str, set[bool]] = {"common": set(), "varied": set()}
    for partition in range(16):
        still = plain.windows(partition, PLAIN)[0].x[:, :3]
        for name, fleet in (("common", common), ("varied", varied)):
            moved = fleet.windows(partition, PLAIN)[0].x[:, :3]
            stronger[name].add(bool(np.abs(moved).sum() > np.abs(still).sum()))
    assert len(stronger["common"]) == 1
    assert stronger["varied"] == {True, False}


def test_a_variation_comes_on_top_of_the_shift_and_not_out_of_the_same_numbers(
    dataset: DataSet,
) -> None:
    both = fleet_of(dataset, devices=4, shift="rate:20", variation="rate:20").windows(0, PLAIN)[0]
    shift = fleet_of(dataset, devices=4, shift="rate:20").windows(0, PLAIN)[0]
    variation = fleet_of(dataset, devices=4, shift="none", variation="rate:20").windows(0, PLAIN)[0]
    assert len({content(part) for part in (both, shift, variation)}) == 3
    assert np.array_equal(both.y, shift.y)


def test_a_variation_that_is_none_is_refused(dataset: DataSet) -> None:
    with pytest.raises(InputError) as refused:
        fleet_of(dataset, variation="gain:10+wobble:3")
    assert refused.value.code == "bad-shift"


def test_a_variation_that_the_channels_do_not_allow_is_refused_before_any_window_is_made(
    dataset: DataSet,
) -> None:
    lone = replace(dataset, channels=tuple(Channel(f"c{i}", "g") for i in range(6)))
    with pytest.raises(DataError) as refused:
        fleet_of(lone, shift="none", variation="remount:10")
    assert refused.value.code == "no-triples"


def test_a_person_without_windows_to_train_on_makes_devices_that_say_so(
    make_dataset: Callable[..., DataSet],
) -> None:
    # Windows of one recording that all are alike: every one is a copy of a tested one.
    alike = make_dataset(x=np.ones((16, 6, 4), np.int16), y=np.zeros(16, np.int16))
    fleet = virtual_fleet(
        RunConfig(devices=3, windows_per_device=2, class_mix=1.0),
        Population(alike, (1,), (2,), None),
    )
    share = fleet.share(1)
    assert share.reason == "device-00001 has no train windows"
    past, future = fleet.windows(1, PLAIN)
    assert (past.x.shape, len(future.y)) == ((0, 6, 4), 2)


def test_memory_does_not_grow_with_the_devices_that_were_asked(dataset: DataSet) -> None:
    fleet = fleet_of(dataset, devices=2000, windows_per_device=8, class_mix=0.5, variation="gain:9")
    for partition in range(8):  # every person's split, and whatever numpy makes once
        fleet.windows(partition, PLAIN)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for partition in range(8, 608):
            fleet.windows(partition, PLAIN)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    # The training windows of a single device; of each of the 600, less than an object's own size.
    assert grown < 8 * 6 * 128 * 4
