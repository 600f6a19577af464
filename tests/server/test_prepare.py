from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fleet.adapt.base import Base
from fleet.adapt.frames import FrameKind
from fleet.config import RunConfig
from fleet.errors import FrameError, InputError, MismatchError, ModelError
from fleet.har.population import Population, population_of, windows_of
from fleet.peft.registry import METHODS, find
from server.prepare import check_feasible, frame_sources, normalisation_of, obtain_base, reframe
from server.rehearsal import Rehearsal, _climb, rehearsal_base

MakeConfig = Callable[..., RunConfig]


def test_an_unknown_model_is_refused_before_anything_is_trained(
    make_config: MakeConfig, tiny_people: Population
) -> None:
    with pytest.raises(ModelError, match="nonesuch"):
        check_feasible(make_config(model="nonesuch"), tiny_people)


def test_a_rank_beyond_the_smallest_kernel_is_refused_and_the_largest_is_named(
    make_config: MakeConfig, tiny_people: Population
) -> None:
    with pytest.raises(FrameError, match="1 to 30"):
        check_feasible(make_config(rank=31), tiny_people)
    check_feasible(make_config(rank=30), tiny_people)


def test_a_base_of_other_classes_is_refused_with_both_sides_named(
    make_config: MakeConfig, tiny_base_file: Path, tmp_path: Path
) -> None:
    from fleet.har import canonical, synthetic
    from fleet.har.dataset import select_labels

    whole = synthetic.make(people=6, windows_per_activity=6)
    fewer = select_labels(whole, whole.labels[:3])
    canonical.write(fewer, tmp_path / "fewer.npz")
    config = make_config(data=str(tmp_path / "fewer.npz"))
    with pytest.raises(MismatchError, match="classes") as caught:
        obtain_base(config, population_of(config))
    assert caught.value.code == "base-data"


def test_a_base_is_taken_as_it_is_when_kind_and_rank_fit_and_reframed_when_not(
    make_config: MakeConfig, tiny_people: Population, tiny_base: Base
) -> None:
    assert obtain_base(make_config(), tiny_people).digest == tiny_base.digest
    other = reframe(tiny_base, tiny_people, "tt", 3)
    assert (other.record.frame_kind, other.record.rank) == ("tt", 3)
    assert other.digest != tiny_base.digest
    assert all(np.array_equal(other.arrays[n], a) for n, a in tiny_base.arrays.items())


@pytest.mark.parametrize("kind", ["gradient", "people"])
def test_a_learned_frame_is_made_of_source_people_and_follows_the_seed(
    tiny_people: Population, tiny_base: Base, kind: FrameKind
) -> None:
    people = replace(tiny_people, source=tiny_people.source[:1])  # each takes thirty steps
    one, other = (reframe(tiny_base, people, kind, 2, seed=seed) for seed in (0, 1))
    assert (one.record.frame_kind, one.record.rank) == (kind, 2)
    alone = Population(people.dataset, people.source, (), None)
    assert reframe(tiny_base, alone, kind, 2).digest == one.digest != other.digest


def test_sources_are_each_persons_windows_turned_three_ways(
    tiny_people: Population, tiny_base: Base
) -> None:
    normalisation = normalisation_of(tiny_base)
    batches = frame_sources(tiny_people, tiny_people.source, normalisation, seed=0)
    assert len(batches) == 3 * len(tiny_people.source)
    for number, person in enumerate(tiny_people.source):
        worn = windows_of(tiny_people, [person], normalisation)
        turned = batches[3 * number : 3 * number + 3]
        for x, y in turned:
            assert (x.shape, x.dtype) == (worn.x.shape, torch.float32)
            assert np.array_equal(y.numpy(), worn.y)
        assert len({x.numpy().tobytes() for x, _ in turned} | {worn.x.tobytes()}) == 4


def test_sources_without_three_axes_are_as_they_were_worn(
    tiny_people: Population, tiny_base: Base
) -> None:
    channels = tuple(replace(c, name=f"c{n}") for n, c in enumerate(tiny_people.dataset.channels))
    plain = replace(tiny_people, dataset=replace(tiny_people.dataset, channels=channels))
    normalisation = normalisation_of(tiny_base)
    batches = frame_sources(plain, plain.source, normalisation, seed=0)
    assert len(batches) == len(plain.source)
    worn = windows_of(plain, plain.source[:1], normalisation)
    assert np.array_equal(batches[0][0].numpy(), worn.x)


def test_no_source_batch_is_larger_than_its_cap(
    tiny_people: Population, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.prepare.SOURCE_WINDOWS", 5)
    batches = frame_sources(tiny_people, tiny_people.source, normalisation_of(tiny_base), seed=0)
    assert all(0 < len(y) <= 5 for _, y in batches)


@pytest.mark.parametrize("kind", ["gradient", "people"])
def test_a_learned_rank_beyond_the_smallest_kernel_is_refused(
    make_config: MakeConfig, tiny_people: Population, kind: FrameKind
) -> None:
    with pytest.raises(FrameError, match="1 to 30"):
        check_feasible(make_config(frame=kind, rank=31), tiny_people)
    check_feasible(make_config(frame=kind, rank=30), tiny_people)


def test_normalisation_comes_from_source_people_alone(
    tiny_people: Population, tiny_base: Base
) -> None:
    source = windows_of(tiny_people, tiny_people.source, normalisation_of(tiny_base))
    assert source.x.mean(axis=(0, 2)) == pytest.approx(np.zeros(6), abs=1e-4)
    assert source.x.std(axis=(0, 2)) == pytest.approx(np.ones(6), abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "best", "tried"),
    [
        ({1.0: 0.2, 2.0: 0.9, 3.0: 0.3, 4.0: 1.0}, 2.0, {1.0, 2.0, 3.0}),
        ({1.0: 0.2, 2.0: 0.3, 3.0: 0.4, 4.0: 0.5}, 4.0, {1.0, 2.0, 3.0, 4.0}),
        ({1.0: 0.5, 2.0: -math.inf, 3.0: -math.inf, 4.0: 0.1}, 1.0, {1.0, 2.0, 3.0}),
    ],
)
def test_a_climb_stops_where_both_neighbours_are_worse(
    scores: dict[float, float], best: float, tried: set[float]
) -> None:
    asked: list[float] = []

    def score(rate: float) -> float:
        asked.append(rate)
        return scores[rate]

    _climb(tuple(scores), 2.0, score)
    assert set(asked) == tried
    assert max(set(asked), key=lambda rate: scores[rate]) == best


def test_every_ladder_is_ascending_and_holds_its_start() -> None:
    for method in METHODS.values():
        assert list(method.rates) == sorted(set(method.rates))
        assert method.default_rate in method.rates


def test_a_rehearsal_holds_out_source_people_and_never_sees_the_fleet(
    make_config: MakeConfig, tiny_people: Population
) -> None:
    rehearsal = rehearsal_base(make_config(base_epochs=2), tiny_people)
    assert isinstance(rehearsal, Rehearsal)
    players = {name for name, _, _ in rehearsal.devices}
    assert players
    assert players.isdisjoint(tiny_people.devices)
    for name in players:
        assert f" {int(name.removeprefix('person-'))}," not in rehearsal.base.record.trained_on


def test_a_rehearsal_chooses_the_same_rate_twice_and_skips_what_diverges(
    make_config: MakeConfig, tiny_people: Population
) -> None:
    config = make_config(base_epochs=2)
    rehearsal = rehearsal_base(config, tiny_people)
    assert rehearsal is not None
    cells: list[tuple[str, float, float]] = []
    rates = [
        rehearsal.choose(config, find("head"), on_cell=lambda *cell: cells.append(cell))
        for _ in range(2)
    ]
    assert rates[0] == rates[1]
    assert not math.isnan({rate: score for _, rate, score in cells}[rates[0]])


def test_too_few_source_people_cannot_rehearse(
    make_config: MakeConfig, tiny_people: Population
) -> None:
    few = Population(tiny_people.dataset, tiny_people.source[:2], tiny_people.fleet, None)
    assert rehearsal_base(make_config(), few) is None


def test_a_fleet_too_small_for_its_rule_is_refused_before_anything_is_trained(
    tiny_people: Population, make_config: MakeConfig
) -> None:
    check_feasible(make_config(rule="krum:0"), tiny_people)
    for changes, told in (({"rule": "krum:1"}, "of 3"), ({"rule": "median", "cohort": 2}, "of 2")):
        with pytest.raises(InputError, match=told) as refused:
            check_feasible(make_config(**changes), tiny_people)
        assert refused.value.code == "rule-above-cohort"
