"""Laws that hold of every rival, whatever it trains."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from fleet.errors import ModelError
from fleet.peft.ada_bn import adabn
from fleet.peft.batch_norm import bn
from fleet.peft.dora import dora
from fleet.peft.galore import galore
from fleet.peft.lora import lora
from fleet.peft.lora_c import lora_c
from fleet.peft.tuner import Start, Tuned, Tuner

MakeStart = Callable[..., Start]
SameGraph = Callable[[nn.Module, nn.Module], bool]

BRANCHED = (lora, lora_c, dora)
TRAINED = (bn, *BRANCHED, galore)
RIVALS = (*TRAINED, adabn)
BACKBONES = ("small-cnn", "t-resnet", "mobilenetv2-1d", "mobilenetv2-2d")


def names(tuners: tuple[Tuner, ...]) -> list[str]:
    return [tuner.name for tuner in tuners]


def train(tuned: Tuned, x: torch.Tensor, steps: int = 4) -> None:
    y = torch.arange(len(x)) % 4
    stepper = tuned.optimiser("adam", 1e-2)
    for _ in range(steps):
        stepper.zero_grad(set_to_none=True)
        functional.cross_entropy(tuned.module(x), y).backward()
        stepper.step()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("tuner", RIVALS, ids=names(RIVALS))
def test_training_starts_at_the_function_of_the_base(
    tuner: Tuner, backbone: str, start_of: MakeStart, x: torch.Tensor
) -> None:
    start = start_of(backbone)
    tuned = tuner.attach(start)
    torch.testing.assert_close(
        tuned.module(x.float()), start.folded(x.float()), rtol=1e-5, atol=1e-5
    )
    assert not tuned.module.training


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("tuner", TRAINED, ids=names(TRAINED))
def test_the_merged_network_is_the_base_s_graph_and_computes_what_the_trained_one_does(
    tuner: Tuner, backbone: str, start_of: MakeStart, same_graph: SameGraph, x: torch.Tensor
) -> None:
    start = start_of(backbone, dtype=torch.float64)
    tuned = tuner.attach(start)
    train(tuned, x, steps=2)
    moved = tuned.module(x)
    assert (moved - start.folded(x)).abs().max() > 1e-3
    served = tuned.served()
    torch.testing.assert_close(served(x), moved, rtol=1e-9, atol=1e-9)
    assert same_graph(served, start.folded)
    assert not any(p.requires_grad for p in served.parameters())


@pytest.mark.parametrize("tuner", RIVALS, ids=names(RIVALS))
def test_neither_training_nor_merging_changes_what_a_method_starts_from(
    tuner: Tuner, start_of: MakeStart, x: torch.Tensor
) -> None:
    start = start_of("t-resnet")
    before = copy.deepcopy((start.raw.state_dict(), start.folded.state_dict()))
    random = torch.random.get_rng_state()
    tuned = tuner.attach(start)
    tuned.calibrate(x.float())
    if tuner.trains:
        train(tuned, x.float())
    trained = copy.deepcopy(tuned.module.state_dict())
    served = tuned.merge()
    with torch.no_grad():
        for parameter in served.parameters():
            parameter.zero_()
    after = (start.raw.state_dict(), start.folded.state_dict())
    for one, two in zip((*before, trained), (*after, tuned.module.state_dict()), strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize("tuner", TRAINED, ids=names(TRAINED))
def test_an_update_weighs_what_is_trained(tuner: Tuner, start_of: MakeStart) -> None:
    tuned = tuner.attach(start_of())
    assert tuned.update_bytes() == 4 * sum(p.numel() for p in tuned.trainable().values())


@pytest.mark.parametrize("tuner", TRAINED, ids=names(TRAINED))
def test_a_head_that_is_unfrozen_is_trained_and_merged(
    tuner: Tuner, start_of: MakeStart, x: torch.Tensor
) -> None:
    start = start_of(dtype=torch.float64)
    tuned = tuner.attach(start)
    tuned.unfreeze(("head.weight", "head.bias"))
    train(tuned, x)
    served = tuned.merge()
    assert not torch.allclose(served.head.bias, start.folded.head.bias, atol=1e-4)
    torch.testing.assert_close(served(x), tuned.module(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tuner", BRANCHED, ids=names(BRANCHED))
def test_factors_are_drawn_from_the_seed_and_from_nothing_else(
    tuner: Tuner, start_of: MakeStart
) -> None:
    one, again, other = (
        tuner.attach(start_of("t-resnet", seed=seed)).trainable() for seed in (1, 1, 2)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], again[name]) for name in one)
    downs = [name for name in one if name.endswith("down")]
    assert downs
    assert not any(torch.equal(one[name], other[name]) for name in downs)


@pytest.mark.parametrize("tuner", BRANCHED, ids=names(BRANCHED))
def test_a_grouped_convolution_is_refused_by_name_and_a_depthwise_one_left_alone(
    tuner: Tuner, start_of: MakeStart
) -> None:
    with pytest.raises(ModelError, match="9 groups") as caught:
        tuner.attach(start_of("calanet"))
    assert caught.value.code == "lora-groups"
    assert caught.value.message.lower().startswith(tuner.name)
    trained = tuner.attach(start_of("mobilenetv2-1d")).trainable()
    assert not any("depthwise" in name for name in trained)


@pytest.mark.parametrize("tuner", [bn, galore], ids=["bn", "galore"])
def test_a_grouped_convolution_is_no_obstacle_where_no_factor_is_put_on_it(
    tuner: Tuner, start_of: MakeStart, x: torch.Tensor
) -> None:
    tuned = tuner.attach(start_of("calanet", dtype=torch.float64))
    train(tuned, x, steps=2)
    torch.testing.assert_close(tuned.merge()(x), tuned.module(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tuner", [*BRANCHED, galore], ids=names((*BRANCHED, galore)))
def test_a_rank_below_one_is_refused(tuner: Tuner, start_of: MakeStart) -> None:
    with pytest.raises(ModelError, match="not 0") as caught:
        tuner.attach(start_of(rank=0)).optimiser("adam", 0.1)
    assert caught.value.code == "rank-too-small"


@pytest.mark.parametrize("tuner", BRANCHED, ids=names(BRANCHED))
def test_a_network_without_convolutions_is_refused(tuner: Tuner) -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ModelError) as caught:
        tuner.attach(Start(network, network, {}, rank=1, seed=0))
    assert caught.value.code == "nothing-to-train"


@pytest.mark.parametrize("tuner", RIVALS, ids=names(RIVALS))
def test_a_method_s_default_rate_is_on_its_ladder(tuner: Tuner) -> None:
    assert tuner.default_rate in tuner.rates
    assert list(tuner.rates) == sorted(set(tuner.rates))
    assert tuner.trains is (tuner is not adabn)
    assert tuner.exact is (tuner in (bn, galore))
