from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fleet.errors import ModelError
from fleet.models import registry
from fleet.models.config import ModelConfig
from fleet.models.registry import HEAD, build, names, register

SMALL = ModelConfig(name="small-cnn", channels=3, classes=4, window=16)


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ModelError, match=r"'lstm'; known: calanet, .*small-cnn, t-resnet"
    ) as caught:
        build(SMALL.model_copy(update={"name": "lstm"}))
    assert caught.value.code == "unknown-model"


@pytest.mark.usefixtures("clean_registry")
def test_a_model_of_ones_own_can_be_registered_once() -> None:
    register("tiny", lambda config: nn.Linear(config.channels, config.classes))
    assert "tiny" in names()
    assert build(SMALL.model_copy(update={"name": "tiny"})).weight.shape == (4, 3)
    with pytest.raises(ModelError, match="'tiny' is registered already") as caught:
        register("tiny", lambda config: nn.Identity())
    assert caught.value.code == "model-exists"


def test_a_built_in_model_cannot_be_replaced() -> None:
    with pytest.raises(ModelError):
        register("small-cnn", lambda config: nn.Identity())
    assert type(build(SMALL)).__name__ == "SmallCNN"


def bits(network: nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())


@pytest.mark.parametrize("name", names())
def test_the_seed_decides_the_weights_and_nothing_else_does(name: str) -> None:
    config = SMALL.model_copy(update={"name": name})
    one = bits(build(config, seed=1))
    torch.manual_seed(99)
    assert bits(build(config, seed=1)) == one
    assert bits(build(config, seed=2)) != one


def test_the_global_random_states_are_left_as_they_were() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()  # type: ignore[union-attr]
    build(SMALL, seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tobytes() == before[1]  # type: ignore[union-attr]
    assert random.getstate() == before[2]


@pytest.mark.parametrize("name", names())
def test_every_backbone_gives_logits_and_ends_in_a_linear_head(name: str) -> None:
    network = build(SMALL.model_copy(update={"name": name})).eval()
    assert isinstance(network.get_submodule(HEAD), nn.Linear)
    for window in (16, 33):
        assert network(torch.zeros(5, 3, window)).shape == (5, 4)


@pytest.mark.parametrize(
    "change",
    [{"channels": 0}, {"classes": 1}, {"window": 7}, {"channels": 4097}, {"depth": 3}],
)
def test_sizes_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ModelConfig.model_validate(SMALL.model_dump() | change)
