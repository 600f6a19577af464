from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fleet.config import RunConfig
from fleet.har import synthetic
from fleet.har.normalise import fit
from fleet.har.population import Population, population_of, share_windows


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
