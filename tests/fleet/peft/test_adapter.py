from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fleet.errors import ModelError
from fleet.peft.adapter import AdaptedConvolution, adapter
from fleet.peft.tuner import Start


def lone(seed: int = 0) -> Start:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = nn.Sequential(nn.Conv1d(4, 6, 3, padding=1, groups=2)).double().eval()
    return Start(network, network, {}, rank=2, seed=seed)


def test_the_output_is_the_convolution_and_two_1x1_convolutions_with_a_relu_between() -> None:
    start = lone()
    tuned = adapter.attach(start)
    adapted = tuned.module[0]
    with torch.no_grad():
        adapted.up.normal_(generator=torch.Generator().manual_seed(1))
    x = torch.randn(5, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = start.folded(x)
    narrow = functional.conv1d(y, adapted.down.unsqueeze(-1)).relu()
    assert 0 < (narrow == 0).double().mean() < 1
    wanted = y + functional.conv1d(narrow, adapted.up.unsqueeze(-1))
    torch.testing.assert_close(tuned.module(x), wanted, rtol=1e-12, atol=1e-12)


def test_gradients_of_both_factors_are_those_of_finite_differences() -> None:
    layer = nn.Conv2d(3, 4, (3, 1), stride=(2, 1), bias=False).double().requires_grad_(False)
    adapted = AdaptedConvolution(layer, 2, seed=1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 7, 2, dtype=torch.float64, generator=generator)
    up = torch.randn(4, 2, dtype=torch.float64, generator=generator, requires_grad=True)

    def forward(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(adapted, {"down": down, "up": up}, (x,))

    assert torch.autograd.gradcheck(forward, (adapted.down, up))


def test_no_dense_network_equals_it_and_the_trained_one_is_served() -> None:
    tuned = adapter.attach(lone())
    with pytest.raises(ModelError, match="ReLU") as caught:
        tuned.merge()
    assert caught.value.code == "cannot-merge"
    served = tuned.served()
    assert isinstance(served[0], AdaptedConvolution)
    assert served is not tuned.module


def test_the_down_factor_is_drawn_from_the_seed() -> None:
    one, again, other = (adapter.attach(lone(seed)).module[0].down for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.abs().max() <= 6**-0.5
