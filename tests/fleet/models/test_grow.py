from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fleet.errors import ModelError
from fleet.models.config import ModelConfig
from fleet.models.grow import MARGIN, grow_head
from fleet.models.registry import HEAD, build, names


def network_of(name: str = "small-cnn") -> nn.Module:
    return build(ModelConfig(name=name, channels=3, classes=4, window=16), seed=1).eval()


def head_of(network: nn.Module) -> nn.Linear:
    head = network.get_submodule(HEAD)
    assert isinstance(head, nn.Linear)
    return head


class HeadOnly(nn.Module):
    """A network that is nothing but its head, to reach every logit."""

    def __init__(self, features: int, classes: int, bias: bool = True) -> None:
        super().__init__()
        self.head = nn.Linear(features, classes, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x)
        return logits


@pytest.mark.parametrize("name", names())
def test_a_grown_network_keeps_every_old_bit_and_gives_more_logits(name: str) -> None:
    network = network_of(name)
    grown = grow_head(network, 7, seed=0)
    before, after = network.state_dict(), grown.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.equal(after[key][: len(tensor)] if tensor.ndim else after[key], tensor), key
    x = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(0))
    assert grown(x).shape == (5, 7)
    assert torch.allclose(grown(x)[:, :4], network(x), atol=1e-5)
    assert (head_of(grown).out_features, head_of(network).out_features) == (7, 4)
    assert head_of(grown).weight.shape == (7, head_of(network).in_features)


@given(st.integers(0, 1000), st.floats(1e-3, 1e4), st.integers(1, 5))
def test_predictions_do_not_change_for_any_input(seed: int, size: float, more: int) -> None:
    random = torch.Generator().manual_seed(seed)
    network = HeadOnly(8, 4).requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random))
    x = size * torch.randn(64, 8, generator=random)
    logits = grow_head(network, 4 + more, seed=seed)(x)
    # Below the margin by what float32 rounds off logits of this size.
    gap = logits[:, :4].amax(dim=1) - logits[:, 4:].amax(dim=1)
    assert (gap >= MARGIN - 1e-5 * (1 + size)).all()
    assert torch.equal(logits[:, :4].argmax(dim=1), network(x).argmax(dim=1))


def test_new_classes_are_mixtures_of_old_ones_and_differ_from_each_other() -> None:
    old, new = head_of(network_of()), head_of(grow_head(network_of(), 6, seed=0))
    rows = torch.cat([new.weight, new.bias[:, None]], dim=1).detach()
    columns = rows[:4].T.double()
    for row in rows[4:].double():
        row = row.clone()
        row[-1] += MARGIN
        shares = torch.linalg.lstsq(columns, row[:, None]).solution
        assert torch.allclose(columns @ shares, row[:, None], atol=1e-6)
        assert (shares > 0).all()
        assert shares.sum() == pytest.approx(1, abs=1e-4)
    assert not torch.allclose(rows[4], rows[5])
    assert torch.equal(rows[:4, :-1], old.weight)


def test_the_seed_decides_the_new_rows_and_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    weights = [head_of(grow_head(network_of(), 6, seed=seed)).weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_growing_shares_nothing_with_the_network_and_keeps_its_state() -> None:
    network = network_of().double().requires_grad_(False)
    grown = grow_head(network, 5, seed=0)
    assert not grown.training
    assert head_of(grown).weight.dtype == torch.float64
    assert not head_of(grown).weight.requires_grad
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.zero_()
    assert head_of(network).weight.abs().sum() > 0


def test_growing_by_nothing_is_a_copy() -> None:
    network = network_of()
    grown = grow_head(network, 4, seed=0)
    assert torch.equal(head_of(grown).weight, head_of(network).weight)
    assert grown is not network


def test_a_head_without_bias_grows_without_margin() -> None:
    network = HeadOnly(8, 4, bias=False)
    logits = grow_head(network, 6, seed=0)(torch.randn(32, 8))
    assert (logits[:, 4:].amax(dim=1) < logits[:, :4].amax(dim=1) + 1e-5).all()


def test_new_classes_can_be_learned_from_the_start() -> None:
    grown = grow_head(network_of(), 6, seed=0)
    x = torch.randn(8, 3, 16, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(grown(x), torch.full((8,), 5)).backward()
    gradients = [parameter.grad for parameter in grown.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_a_head_cannot_shrink() -> None:
    with pytest.raises(ModelError, match="4 classes can only grow, not shrink to 3") as caught:
        grow_head(network_of(), 3, seed=0)
    assert caught.value.code == "too-few-classes"


@pytest.mark.parametrize("network", [nn.Identity(), nn.ModuleDict({"head": nn.ReLU()})])
def test_a_network_without_linear_head_is_refused(network: nn.Module) -> None:
    with pytest.raises(ModelError, match="'head'") as caught:
        grow_head(network, 6, seed=0)
    assert caught.value.code == "no-head"
