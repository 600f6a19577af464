from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.adapt.cohort.optimisers import StackedAdam, StackedSGD, Stepper, stepper

DEVICES = 4
SHAPES = {"core": (3, 2), "bias": (5,)}

# name: (stacked, one device's)
OPTIMISERS: dict[str, tuple[Callable[[Any], Stepper], Callable[[Any], torch.optim.Optimizer]]] = {
    "sgd": (
        lambda p: StackedSGD(p, 0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ),
    "sgd without momentum": (
        lambda p: StackedSGD(p, 0.1, 0.0),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ),
    "adam": (lambda p: StackedAdam(p, 0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    "adam by name": (
        lambda p: stepper(p, "adam", 0.02, 0.9),
        lambda p: torch.optim.Adam(p, lr=0.02),
    ),
    "sgd by name": (
        lambda p: stepper(p, "sgd", 0.2, 0.5),
        lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.5),
    ),
}


def stacks(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn((DEVICES, *shape), generator=source, dtype=dtype)
        for name, shape in SHAPES.items()
    }


def alone(
    make: Callable[[Any], torch.optim.Optimizer], device: int, turns: list[list[bool]]
) -> dict[str, torch.Tensor]:
    own = {n: torch.nn.Parameter(v[device].clone()) for n, v in stacks(0).items()}
    optimiser = make(list(own.values()))
    for turn, active in enumerate(turns):
        if active[device]:
            gradients = stacks(1 + turn)
            for name, parameter in own.items():
                parameter.grad = gradients[name][device].clone()
            optimiser.step()
    return {name: parameter.detach() for name, parameter in own.items()}


@pytest.mark.parametrize("name", OPTIMISERS)
@settings(max_examples=15, deadline=None)
@given(
    turns=st.lists(
        st.lists(st.booleans(), min_size=DEVICES, max_size=DEVICES), min_size=1, max_size=5
    )
)
def test_each_device_moves_as_it_would_alone(name: str, turns: list[list[bool]]) -> None:
    stacked, single = OPTIMISERS[name]
    parameters = stacks(0)
    optimiser = stacked(parameters)
    for turn, active in enumerate(turns):
        before = {n: p.clone() for n, p in parameters.items()}
        optimiser.step(stacks(1 + turn), torch.tensor(active))
        for entry, parameter in parameters.items():
            for device in range(DEVICES):
                still = torch.equal(parameter[device], before[entry][device])
                assert still is not active[device]
    for device in range(DEVICES):
        for entry, wanted in alone(single, device, turns).items():
            torch.testing.assert_close(parameters[entry][device], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_what_is_not_finite_stays_with_its_device(name: str) -> None:
    parameters, ill = stacks(0), stacks(1)
    for gradient in ill.values():
        gradient[1] = torch.nan
        gradient[2] = torch.inf
    active = torch.tensor([True, True, False, True])
    optimiser, before = OPTIMISERS[name][0](parameters), stacks(0)
    for _ in range(2):
        optimiser.step(ill, active)
    for entry, parameter in parameters.items():
        assert torch.equal(parameter[2], before[entry][2])
        assert parameter[[0, 3]].isfinite().all()
        assert not parameter[1].isfinite().any()
