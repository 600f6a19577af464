from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.attach import adaptable_layers, capped_ranks, make_frames
from fleet.adapt.fold import fold
from fleet.adapt.rank_plan import costs_of, plan_ranks, spectra_of, uniform_rank
from fleet.errors import InputError
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.registry import find

Spectra = dict[str, NDArray[np.float64]]


def network_of(name: str = "small-cnn") -> nn.Module:
    return fold(build(ModelConfig(name=name, channels=3, classes=4, window=32), seed=3))


def captured(spectra: Spectra, ranks: Mapping[str, int]) -> float:
    return sum(
        float((spectra[n][:r] ** 2).sum() / (spectra[n] ** 2).sum()) for n, r in ranks.items()
    )


def best_of_all(
    spectra: Spectra, costs: Mapping[str, int], budget: int, smallest: int = 0
) -> float:
    """Brute force over every combination of ranks."""
    best = -1.0
    for ranks in product(*(range(min(smallest, len(s)), len(s) + 1) for s in spectra.values())):
        if sum(costs[n] * r for n, r in zip(spectra, ranks, strict=True)) <= budget:
            best = max(best, captured(spectra, dict(zip(spectra, ranks, strict=True))))
    return best


@st.composite
def tiny(draw: st.DrawFn) -> tuple[Spectra, dict[str, int]]:
    spectra, costs = {}, {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        values = draw(st.lists(st.integers(1, 1000), min_size=1, max_size=4, unique=True))
        spectra[name] = np.sort(np.array(values, np.float64) / 100)[::-1]
        costs[name] = draw(st.integers(1, 6))
    return spectra, costs


@given(case=tiny(), budget=st.integers(1, 40))
@settings(deadline=None, max_examples=150)
def test_with_columns_of_one_price_the_plan_is_the_best_of_all(
    case: tuple[Spectra, dict[str, int]], budget: int
) -> None:
    spectra, _ = case
    costs = dict.fromkeys(spectra, 1)
    plan = plan_ranks(spectra, costs, budget)
    assert plan.captured == pytest.approx(best_of_all(spectra, costs, budget))


@given(case=tiny(), budget=st.integers(6, 60), smallest=st.integers(0, 2))
@settings(deadline=None, max_examples=200)
def test_the_plan_falls_short_of_the_best_by_less_than_one_column(
    case: tuple[Spectra, dict[str, int]], budget: int, smallest: int
) -> None:
    spectra, costs = case
    if sum(costs[n] * min(smallest, len(s)) for n, s in spectra.items()) > budget:
        return
    plan = plan_ranks(spectra, costs, budget, smallest=smallest)
    assert plan.bytes == sum(costs[n] * r for n, r in plan.ranks.items()) <= budget
    assert all(r >= min(smallest, len(spectra[n])) for n, r in plan.ranks.items())
    assert plan.captured == pytest.approx(captured(spectra, plan.ranks))
    following = [
        float(s[plan.ranks[n]] ** 2 / (s**2).sum())
        for n, s in spectra.items()
        if plan.ranks[n] < len(s)
    ]
    best = best_of_all(spectra, costs, budget, smallest)
    assert best - plan.captured <= max(following, default=0.0) + 1e-9


@given(case=tiny(), budget=st.integers(6, 60))
@settings(deadline=None, max_examples=60)
def test_what_was_bought_first_is_the_best_for_its_own_bytes(
    case: tuple[Spectra, dict[str, int]], budget: int
) -> None:
    """Greedy solves the relaxation: cut back to where it first had to skip, it is optimal."""
    spectra, costs = case
    order = sorted(
        (
            (-(s[i] ** 2) / (s**2).sum() / costs[n], n)
            for n, s in spectra.items()
            for i in range(len(s))
        )
    )
    spent = 0
    for _, name in order:
        if spent + costs[name] > budget:
            break
        spent += costs[name]
    if spent:
        plan = plan_ranks(spectra, costs, spent)
        assert plan.captured == pytest.approx(best_of_all(spectra, costs, spent))


def test_a_plan_made_by_hand_reads_as_written() -> None:
    spectra = {"a": np.array([3.0, 1.0]), "b": np.array([2.0, 2.0 / 3])}
    plan = plan_ranks(spectra, {"a": 100, "b": 200}, 350)
    assert dict(plan.ranks) == {"a": 1, "b": 1}
    assert (plan.bytes, plan.budget_bytes) == (300, 350)
    assert dict(plan.energy) == pytest.approx({"a": 0.9, "b": 0.9})
    assert not plan.refused
    # 0.9 per 100 bytes, then 0.9 per 200, then 0.1 per 100.
    assert dict(plan_ranks(spectra, {"a": 100, "b": 200}, 100).ranks) == {"a": 1, "b": 0}
    assert dict(plan_ranks(spectra, {"a": 100, "b": 200}, 400).ranks) == {"a": 2, "b": 1}


def test_layers_without_a_column_are_refused_with_the_reason() -> None:
    spectra = {"a": np.array([3.0, 1.0]), "b": np.array([2.0, 1.0]), "c": np.zeros(2)}
    plan = plan_ranks(spectra, {"a": 100, "b": 400, "c": 100}, 350)
    assert dict(plan.ranks) == {"a": 2, "b": 0, "c": 0}
    assert plan.refused["c"] == "its kernel is zero"
    assert "0.80" in plan.refused["b"]
    assert "250 bytes were left" in plan.refused["b"]
    assert "a" not in plan.refused


def test_equal_singular_values_are_bought_together_or_not_at_all() -> None:
    spectra = {"a": np.array([3.0, 2.0, 2.0, 1.0])}
    ranks = [plan_ranks(spectra, {"a": 1}, budget).ranks["a"] for budget in (1, 2, 3, 4)]
    assert ranks == [1, 1, 3, 4]
    assert plan_ranks(spectra, {"a": 1}, 3, smallest=2).ranks["a"] == 3


def test_directions_without_energy_are_never_bought() -> None:
    assert plan_ranks({"a": np.array([3.0, 1.0, 0.0])}, {"a": 1}, 99).ranks["a"] == 2


def test_every_layer_gets_its_smallest_rank_first() -> None:
    spectra = {"a": np.array([1.0, 0.9, 0.8]), "b": np.array([1.0, 0.1])}
    assert dict(plan_ranks(spectra, {"a": 10, "b": 1}, 13).ranks) == {"a": 1, "b": 2}
    assert dict(plan_ranks(spectra, {"a": 10, "b": 1}, 23, smallest=2).ranks) == {"a": 2, "b": 2}
    assert dict(plan_ranks(spectra, {"a": 10, "b": 1}, 99, smallest=3).ranks) == {"a": 3, "b": 2}


@pytest.mark.parametrize(("smallest", "least"), [(0, "10 bytes"), (1, "30 bytes"), (2, "60 bytes")])
def test_too_small_a_budget_names_the_least_useful_one(smallest: int, least: str) -> None:
    spectra = {"a": np.array([2.0, 1.0]), "b": np.array([2.0, 1.0])}
    costs = {"a": 10, "b": 20}
    with pytest.raises(InputError) as caught:
        plan_ranks(spectra, costs, 9, smallest=smallest)
    assert caught.value.code == "budget-too-small"
    assert f"is {least}" in caught.value.hint
    plan_ranks(spectra, costs, int(least.split()[0]), smallest=smallest)


def test_nothing_to_plan_and_a_negative_rank_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        plan_ranks({"a": np.zeros(3)}, {"a": 1}, 9)
    assert caught.value.code == "nothing-to-plan"
    with pytest.raises(InputError) as caught:
        plan_ranks({"a": np.ones(1)}, {"a": 1}, 9, smallest=-1)
    assert caught.value.code == "rank-too-small"


@pytest.mark.parametrize("name", ["small-cnn", "t-resnet", "calanet"])
def test_a_spectrum_holds_the_kernels_energy_and_is_as_long_as_its_largest_rank(name: str) -> None:
    network = network_of(name)
    ranks = capped_ranks(network, "svd", 10**6)
    for layer, sigma in spectra_of(network).items():
        kernel = network.get_parameter(f"{layer}.weight").detach().numpy()
        assert np.sqrt((sigma**2).sum()) == pytest.approx(np.linalg.norm(kernel), rel=1e-6)
        assert (np.diff(sigma) <= 0).all()
        assert len(sigma) == ranks[layer]


@pytest.mark.parametrize("name", ["small-cnn", "t-resnet", "mobilenetv2-1d"])
def test_a_plan_is_what_frames_can_be_made_of_and_takes_the_bytes_that_it_says(name: str) -> None:
    network = network_of(name)
    plan = plan_ranks(spectra_of(network), costs_of(network), 20_000)
    frames = make_frames(network, "svd", plan.ranks)
    assert {n: f.rank for n, f in frames.items()} == {n: r for n, r in plan.ranks.items() if r}
    assert 4 * find("core").layout(network, frames).size == plan.bytes
    assert set(plan.refused) == set(adaptable_layers(network)[0]) - set(frames)


def test_a_uniform_rank_is_the_largest_that_fits() -> None:
    costs = {"a": 10, "b": 20}
    assert [uniform_rank(costs, budget) for budget in (0, 29, 30, 89, 90)] == [0, 0, 1, 2, 3]
    assert [uniform_rank(costs, budget, {"a": 1, "b": 9}) for budget in (29, 49, 50, 999)] == [
        *(0, 1, 2, 9)
    ]
    assert uniform_rank({}, 99) == uniform_rank({}, 99, {}) == 0
