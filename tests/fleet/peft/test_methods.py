from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fleet.adapt.attach import attach
from fleet.adapt.fold import fold
from fleet.adapt.frames import Frame
from fleet.adapt.merge import merge
from fleet.adapt.network import parameters_of, with_parameters
from fleet.adapt.state import CoreState
from fleet.errors import InputError
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.registry import METHODS, find


@pytest.fixture(scope="module")
def folded() -> nn.Module:
    config = ModelConfig(name="small-cnn", channels=3, classes=4, window=16)
    return fold(build(config, seed=1)).requires_grad_(False)


@pytest.fixture(scope="module")
def frames(folded: nn.Module) -> dict[str, Frame]:
    rng = np.random.default_rng(0)
    return {
        name: Frame("svd", 2, 1, rng.standard_normal((1, 2, outputs)).astype(np.float32) / 8)
        for name, outputs in (("conv1", 64), ("conv2", 128), ("conv3", 128))
    }


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="'dora'; known: bias, core, full, head, lora") as caught:
        find("dora")
    assert caught.value.code == "unknown-method"
    assert "core+head" in caught.value.hint


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_found_by_its_name_and_sweeps_around_its_default(name: str) -> None:
    method = find(name)
    assert method.name == name
    assert method.default_rate in method.rates
    assert list(method.rates) == sorted(set(method.rates))
    assert method.summary


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_trains_can_be_attached_and_merged(
    name: str, folded: nn.Module, frames: dict[str, Frame]
) -> None:
    layout = find(name).layout(folded, frames)
    rng = np.random.default_rng(1)
    state = CoreState.from_flat(layout, 0.05 * rng.standard_normal(layout.size))
    attached = attach(folded, frames, state, dtype=torch.float64)
    assert set(attached.parameters) == set(layout.names)
    exact = copy.deepcopy(folded).double()
    served = with_parameters(exact, merge(parameters_of(exact), frames, state))
    x = torch.from_numpy(rng.standard_normal((3, 3, 16)))
    torch.testing.assert_close(served(x), attached.module(x), rtol=1e-9, atol=1e-9)
    assert (served(x) - folded.double()(x)).abs().max() > 1e-3


def test_the_methods_train_disjoint_or_nested_parameters(
    folded: nn.Module, frames: dict[str, Frame]
) -> None:
    names = {name: set(find(name).layout(folded, frames).names) for name in METHODS}
    assert names["head"] < names["full"]
    assert names["core"] == {"conv1.core", "conv2.core", "conv3.core"}
    assert names["full"] == {name for name, _ in folded.named_parameters()}
