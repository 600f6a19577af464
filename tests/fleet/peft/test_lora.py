from __future__ import annotations

import pytest
import torch
from torch import nn

from fleet.adapt.fold import fold
from fleet.errors import ModelError
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.lora import attach_lora, merge_lora


def folded(name: str) -> nn.Module:
    return fold(build(ModelConfig(name=name, channels=3, classes=4, window=16), seed=2)).double()


@pytest.mark.parametrize("name", ["small-cnn", "t-resnet"])
def test_a_fresh_branch_changes_nothing_and_a_merged_one_equals_its_forward(name: str) -> None:
    network, x = folded(name), torch.randn(2, 3, 16, dtype=torch.float64)
    attached = attach_lora(network, 2).double()
    assert torch.allclose(attached(x), network(x), atol=1e-12)
    with torch.no_grad():
        for parameter in attached.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    moved = attached(x)
    assert not torch.allclose(moved, network(x), atol=1e-3)
    assert torch.allclose(merge_lora(attached)(x), moved, atol=1e-10)


def test_only_the_two_factors_of_each_convolution_are_trained() -> None:
    attached = attach_lora(folded("small-cnn"), 4)
    trained = sum(p.numel() for p in attached.parameters() if p.requires_grad)
    downs = 4 * (3 * 5 + 64 * 5 + 128 * 5)
    assert trained == downs + 4 * (64 + 128 + 128)


def test_a_grouped_convolution_is_refused_and_the_groups_are_named() -> None:
    with pytest.raises(ModelError, match="2 groups"):
        attach_lora(nn.Sequential(nn.Conv1d(4, 6, 3, groups=2)), 1)


def test_the_mean_of_factors_is_not_the_mean_of_kernels() -> None:
    one, two = (attach_lora(nn.Sequential(nn.Conv1d(4, 6, 3)), 2) for _ in range(2))
    for index, network in enumerate((one, two)):
        generator = torch.Generator().manual_seed(index)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
    mean_of_kernels = (one[0].delta() + two[0].delta()) / 2
    up, down = ((getattr(one[0], n) + getattr(two[0], n)) / 2 for n in ("up", "down"))
    mean_of_factors = torch.tensordot(up, down, dims=1)
    error = (mean_of_factors - mean_of_kernels).norm() / mean_of_kernels.norm()
    assert error > 0.3
