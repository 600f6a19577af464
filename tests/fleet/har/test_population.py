from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fleet.config import RunConfig
from fleet.har import synthetic
from fleet.har.dataset import DataSet
from fleet.har.normalise import Normalisation, fit
from fleet.har.population import Population, population_of, share_windows
from fleet.har.shifts import parse

PLAIN = Normalisation(np.zeros(6, np.float32), np.ones(6, np.float32))


@pytest.fixture(scope="module")
def people() -> Population:
    dataset = synthetic.make(people=6, windows_per_activity=6)
    return population_of(RunConfig(shift="remount:35"), dataset)


def test_source_and_fleet_are_disjoint_and_together_everybody(people: Population) -> None:
    assert set(people.source).isdisjoint(people.fleet)
    assert sorted((*people.source, *people.fleet)) == list(people.dataset.subjects)
    assert len(people.devices) == len(people.fleet)


def test_the_shift_rotates_a_device_but_keeps_its_labels_and_lengths(people: Population) -> None:
    normalisation = fit(people.dataset, people.source)
    arguments = {"train_fraction": 0.6, "seed": 0}
    _, moved, _ = share_windows(people, people.fleet[0], normalisation, **arguments)
    _, still, _ = share_windows(people, people.fleet[0], normalisation, **arguments, shifted=False)
    assert np.array_equal(moved.y, still.y)
    assert not np.allclose(moved.x, still.x)
    raw = [w.x * normalisation.std[:, None] + normalisation.mean[:, None] for w in (moved, still)]
    lengths = [np.linalg.norm(x[:, :3], axis=1) for x in raw]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-3)


def test_remounted_windows_have_the_digest_that_they_always_had(
    make_dataset: Callable[..., DataSet],
) -> None:
    # Releases of a fleet with re-mounted sensors depend on every bit of them.
    tiny = Population(make_dataset(), (1,), (2,), parse("remount:35"))
    _, past, future = share_windows(tiny, 2, PLAIN, train_fraction=0.6, seed=7)
    digest = hashlib.sha256(past.x.tobytes() + future.x.tobytes()).hexdigest()
    assert digest == "3b4ab6d54b32fe41fb9a9f2df2a84b5830a363f531028a5cc844794976640abf"


def test_the_noise_of_the_past_does_not_come_again_in_the_future(
    make_dataset: Callable[..., DataSet],
) -> None:
    tiny = Population(make_dataset(), (1,), (2,), parse("noise:50"))
    arguments = {"train_fraction": 0.6, "seed": 7}
    share, past, future = share_windows(tiny, 2, PLAIN, **arguments)
    _, past_still, future_still = share_windows(tiny, 2, PLAIN, **arguments, shifted=False)
    noise = [past.x - past_still.x, future.x - future_still.x]
    assert np.abs(noise[0] - noise[1]).min() > 0
    rows = np.concatenate([share.train, share.test])
    level = np.std(tiny.dataset.physical(rows), axis=(0, 2))
    assert np.std(np.concatenate(noise), axis=(0, 2)) == pytest.approx(0.5 * level, rel=0.5)


def test_train_and_test_rows_of_a_device_are_its_persons_and_disjoint(people: Population) -> None:
    normalisation = fit(people.dataset, people.source)
    person = people.fleet[1]
    share, train, test = share_windows(people, person, normalisation, train_fraction=0.6, seed=0)
    assert not set(share.train) & set(share.test)
    assert (people.dataset.subject[np.concatenate([share.train, share.test])] == person).all()
    assert (len(train.y), len(test.y)) == (len(share.train), len(share.test))


def test_the_same_configuration_gives_the_same_people_and_another_seed_others() -> None:
    dataset = synthetic.make(people=12, windows_per_activity=2)
    fleets = [population_of(RunConfig(seed=s), dataset).fleet for s in (0, 0, 1)]
    assert fleets[0] == fleets[1] != fleets[2]


def test_without_a_name_the_synthetic_fleet_is_used_where_no_set_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("fleet.har.sources.folders", lambda: ())
    monkeypatch.chdir(tmp_path)
    assert population_of(RunConfig()).dataset.name == "synthetic"
