from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fleet.adapt.stepper import SGD, Adam, AdamW, Rule, Stepper, rule_of
from fleet.errors import MismatchError

Parameters = dict[str, torch.Tensor]

# name: (our rule, torch's optimiser)
OPTIMISERS: dict[str, tuple[Rule, Any]] = {
    "sgd": (SGD(0.1), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=False)),
    "sgd without momentum": (SGD(0.3, 0.0), lambda p: torch.optim.SGD(p, lr=0.3, foreach=False)),
    "adam": (Adam(0.01), lambda p: torch.optim.Adam(p, lr=0.01, foreach=False)),
    "adamw": (
        AdamW(0.01, weight_decay=0.2),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.2, foreach=False),
    ),
}
ODD_VALUES = (0.0, -0.0, 1e-40, -1e30, float("inf"), float("nan"))
SHAPES = st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=3)


def values(shape: list[int], source: np.random.Generator, dtype: torch.dtype) -> torch.Tensor:
    """Return values of many sizes, now and then an odd one."""
    found = source.standard_normal(shape) * 10.0 ** source.integers(-9, 9, shape)
    odd = source.random(shape) < 0.01
    return torch.from_numpy(np.where(odd, source.choice(ODD_VALUES, shape), found)).to(dtype)


def bits(tensors: Parameters) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


def some(seed: int = 0, dtype: torch.dtype = torch.float32) -> Parameters:
    source = np.random.default_rng(seed)
    shapes = {"core": [8, 2], "bias": [5]}
    return {
        name: torch.nn.Parameter(torch.from_numpy(source.standard_normal(shape)).to(dtype))
        for name, shape in shapes.items()
    }


def stepped(stepper: Stepper, seeds: range) -> None:
    for seed in seeds:
        for parameter, gradient in zip(
            stepper.parameters.values(), some(seed).values(), strict=True
        ):
            parameter.grad = gradient.detach().clone()
        stepper.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIMISERS)
@settings(max_examples=40)
@given(
    shapes=SHAPES,
    turns=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=12),
    cut=st.integers(0, 12),
    seed=st.integers(0, 2**32),
)
@example(shapes=[[33, 5], [7]], turns=[[True] * 3] * 60, cut=29, seed=1)
def test_many_steps_are_those_of_torch_to_the_bit_also_when_saved_and_restored(
    name: str,
    dtype: torch.dtype,
    shapes: list[list[int]],
    turns: list[list[bool]],
    cut: int,
    seed: int,
) -> None:
    source, (rule, make) = np.random.default_rng(seed), OPTIMISERS[name]
    start = {f"layer{i}.core": values(shape, source, dtype) for i, shape in enumerate(shapes)}
    theirs = {n: torch.nn.Parameter(v.clone()) for n, v in start.items()}
    other = make(theirs.values())
    stepper = Stepper({n: torch.nn.Parameter(v.clone()) for n, v in start.items()}, rule)
    for number, turn in enumerate(turns):
        if number == cut:
            saved = stepper.export()
            stepper = Stepper({n: torch.nn.Parameter(v + 1) for n, v in start.items()}, rule)
            stepper.restore(saved)
        stepper.clear()
        for present, parameter, own in zip(
            turn, theirs.values(), stepper.parameters.values(), strict=False
        ):
            gradient = values(list(parameter.shape), source, dtype)
            parameter.grad = gradient.clone() if present else None
            own.grad = gradient.clone() if present else None
        other.step()
        stepper.step()
        assert bits(stepper.parameters) == bits(theirs)


@pytest.mark.parametrize("rule", [SGD(0.1), Adam(0.1)])
def test_a_parameter_without_a_gradient_neither_moves_nor_ages(rule: Rule) -> None:
    stepper = Stepper(some(), rule)
    stepped(stepper, range(1, 4))
    before = stepper.export()
    stepper.clear()
    stepper.parameters["core"].grad = torch.ones(8, 2)
    stepper.step()
    after = stepper.export()
    for key, array in before.items():
        assert np.array_equal(array, after[key]) is key.endswith("/bias"), key


def test_a_rule_is_found_by_its_name_in_plans() -> None:
    assert rule_of("sgd", 0.07, 0.5) == SGD(0.07, 0.5)
    assert rule_of("adam", 0.07, 0.5) == Adam(0.07)


def test_velocity_builds_up_by_the_momentum() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    stepper = Stepper({"p": parameter}, SGD(1.0, 0.5))
    places = []
    for _ in range(3):
        parameter.grad = torch.ones(1)
        stepper.step()
        places.append(parameter.item())
    assert places == [-1.0, -2.5, -4.25]


@pytest.mark.parametrize("rule", [SGD(0.1), SGD(0.1, 0.0), Adam(0.1)])
def test_gradients_are_read_and_not_written(rule: Rule) -> None:
    parameter, first, second = torch.zeros(3), torch.ones(3), torch.full((3,), 2.0)
    stepper = Stepper({"p": parameter}, rule)
    for gradient in (first, second, second):
        parameter.grad = gradient
        stepper.step()
    assert first.tolist() == [1.0] * 3
    assert second.tolist() == [2.0] * 3


def test_what_is_exported_has_the_names_shapes_and_dtypes_that_it_says() -> None:
    stepper = Stepper(some(dtype=torch.float64), Adam(0.1))
    fresh = {key: (a.shape, str(a.dtype)) for key, a in stepper.export().items()}
    assert fresh == {
        "parameter/core": ((8, 2), "float64"),
        "parameter/bias": ((5,), "float64"),
        "moment/step/core": ((), "int64"),
        "moment/step/bias": ((), "int64"),
    }
    stepper.parameters["bias"].grad = torch.ones(5, dtype=torch.float64)
    stepper.step()
    later = stepper.export()
    assert later.keys() - fresh.keys() == {"moment/mean/bias", "moment/square/bias"}
    assert (later["moment/step/bias"], later["moment/step/core"]) == (1, 0)


def test_what_is_exported_is_a_copy_and_so_is_what_is_restored() -> None:
    stepper = Stepper(some(), Adam(0.1))
    stepped(stepper, range(1, 3))
    saved = stepper.export()
    kept = {key: array.copy() for key, array in saved.items()}
    stepped(stepper, range(3, 5))
    other = Stepper(some(), Adam(0.1))
    other.restore(saved)
    stepped(other, range(5, 7))
    for key, array in kept.items():
        np.testing.assert_array_equal(array, saved[key])


@pytest.mark.parametrize("rule", [SGD(0.1), Adam(0.1)])
def test_a_layout_in_memory_outlives_being_restored(rule: Rule) -> None:
    def transposed(seed: int) -> torch.nn.Parameter:
        source = torch.Generator().manual_seed(seed)
        return torch.nn.Parameter(torch.randn(5, 9, generator=source).t())

    def on(stepper: Stepper) -> dict[str, bytes]:
        for _ in range(3):
            stepper.parameters["p"].grad = transposed(1).detach().clone()
            stepper.step()
        return {key: array.tobytes() for key, array in stepper.export().items()}

    stepper = Stepper({"p": transposed(0)}, rule)
    on(stepper)
    saved = stepper.export()
    other = Stepper({"p": transposed(2)}, rule)
    other.restore(saved)
    assert all(array.flags.c_contiguous for array in saved.values())
    for moment in (*other.moments["p"].values(), other.parameters["p"]):
        assert moment.stride() == (1, 9)
    assert on(other) == on(stepper)


def without(key: str) -> Any:
    return lambda saved: saved.pop(key)


def with_(key: str, array: Any) -> Any:
    return lambda saved: saved.update({key: np.asarray(array)})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without("parameter/core"), "parameter/core is missing"),
        (without("moment/mean/bias"), "moment/mean/bias is missing"),
        (without("moment/step/bias"), "moment/step/bias counts steps .* missing"),
        (with_("parameter/other", 0.0), "parameter/other is not of this training"),
        (with_("moment/velocity/core", 0.0), "moment/velocity/core is not of this training"),
        (with_("moment/step/other", 1), "moment/step/other is not of this training"),
        (with_("parameter/core", np.zeros((2, 8), np.float32)), r"\(8, 2\) float32, not \(2, 8\)"),
        (with_("parameter/bias", np.zeros(1, np.float32)), r"\(5,\) float32, not \(1,\)"),
        (with_("moment/mean/bias", np.zeros(5)), r"float32, not \(5,\) float64"),
        (with_("moment/step/bias", -1), "it is int64 -1"),
        (with_("moment/step/bias", [2, 2]), "it is int64"),
        (with_("moment/step/bias", 2.0), "it is float64 2.0"),
        (with_("moment/step/bias", 0), "moment/mean/bias is not of this training"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(change: Any, named: str) -> None:
    source = Stepper(some(), Adam(0.1))
    stepped(source, range(1, 3))
    saved = source.export()
    change(saved)
    stepper = Stepper(some(7), Adam(0.1))
    stepped(stepper, range(8, 9))
    before = stepper.export()
    with pytest.raises(MismatchError, match=named) as refused:
        stepper.restore(saved)
    assert refused.value.code == "progress-mismatch"
    after = stepper.export()
    assert {k: a.tobytes() for k, a in after.items()} == {k: a.tobytes() for k, a in before.items()}


@pytest.mark.parametrize(
    ("one", "other"), [(SGD(0.1), Adam(0.1)), (Adam(0.1), SGD(0.1)), (SGD(0.1, 0.0), SGD(0.1))]
)
def test_what_another_optimiser_remembers_is_refused(one: Rule, other: Rule) -> None:
    stepper = Stepper(some(), one)
    stepped(stepper, range(1, 2))
    with pytest.raises(MismatchError):
        Stepper(some(), other).restore(stepper.export())
