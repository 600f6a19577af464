"""Each of these once went wrong."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fleet.adapt.attach import attach
from fleet.adapt.fold import ChannelAffine, fold
from fleet.adapt.frames import make_frame
from fleet.adapt.merge import merge
from fleet.adapt.network import parameters_of
from fleet.adapt.state import CoreState
from fleet.adapt.train import train
from fleet.errors import MismatchError, ModelError, RoundError
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.full import full
from fleet.peft.method import trainable

CONFIG = ModelConfig(name="t-resnet", channels=3, classes=4, window=16)


def folded() -> nn.Module:
    return fold(build(CONFIG, seed=1)).requires_grad_(False)


def test_the_state_of_dense_entries_is_relative_to_the_base() -> None:
    network = folded()
    layout = full.layout(network, {})
    zero = CoreState.zero(layout)
    assert attach(network, {}, zero, dtype=torch.float32).state().norm == 0.0
    moved = CoreState.from_flat(layout, np.full(layout.size, 0.25, np.float32))
    back = attach(network, {}, moved, dtype=torch.float64).state()
    np.testing.assert_allclose(back.flat(), moved.flat(), atol=1e-12)


def test_full_leaves_the_affine_maps_of_frozen_batch_norms_alone() -> None:
    network = folded()
    affine = [n for n, m in network.named_modules() if isinstance(m, ChannelAffine)]
    assert affine
    assert not [n for n in full.layout(network, {}).names if n.rpartition(".")[0] in affine]


def test_folding_twice_is_folding_once() -> None:
    once = folded()
    twice = fold(once)
    x = torch.randn(2, 3, 16)
    assert torch.equal(once(x), twice(x))


class ReadsItsKernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 1)
        self.norm = nn.BatchNorm1d(2)
        self.norm.running_mean.fill_(0.5)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.conv(x)) + self.conv.weight.sum()
        return out


def test_a_kernel_that_the_forward_pass_reads_itself_is_not_folded_into() -> None:
    model = ReadsItsKernel().eval()
    x = torch.randn(3, 2, 5)
    assert torch.allclose(fold(model)(x), model(x), atol=1e-6)


def test_a_merge_that_leaves_the_range_of_float32_is_refused() -> None:
    kernel = np.ones((2, 3), np.float32)
    state = CoreState.of({"layer.weight": np.full((2, 3), 3.3e38, np.float32)})
    with pytest.raises(MismatchError) as caught:
        merge({"layer.weight": kernel * np.float32(1e38)}, {}, state)
    assert caught.value.code == "merge-overflow"


def test_a_last_step_that_diverges_is_noticed_though_no_loss_shows_it() -> None:
    network = folded()
    layout = trainable(network, {"head.weight", "head.bias"})
    attached = attach(network, {}, CoreState.zero(layout), dtype=torch.float32)
    x, y = 1e4 * torch.randn(4, 3, 16), torch.tensor([0, 1, 2, 3])
    with pytest.raises(RoundError, match="diverged"):
        train(attached, x, y, [np.arange(4)], optimiser="sgd", learning_rate=3e38)


def test_a_tt_frame_takes_kernels_that_are_constant_in_time() -> None:
    flat = np.random.default_rng(0).normal(size=(8, 6, 1))
    kernel = np.repeat(flat, 5, axis=2)
    frame = make_frame(kernel, "tt", 3)
    suffix = frame.suffix(kernel)[0]
    assert suffix.shape == (3, 6, 5)
    assert np.ptp(suffix, axis=2) == pytest.approx(np.zeros((3, 6)), abs=1e-5)


def test_a_network_without_the_parameters_that_a_method_trains_is_refused() -> None:
    with pytest.raises(ModelError, match=r"head\.weight"):
        trainable(nn.Conv1d(1, 1, 1), {"head.weight"})


def test_building_a_network_leaves_the_global_random_state_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(CONFIG, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    second = build(CONFIG, seed=1)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_moving_one_attached_network_moves_no_other() -> None:
    network = folded()
    reference = copy.deepcopy(parameters_of(network))
    layout = full.layout(network, {})
    attached = attach(network, {}, CoreState.zero(layout), dtype=torch.float32)
    with torch.no_grad():
        for parameter in attached.parameters.values():
            parameter.add_(1.0)
    assert all(np.array_equal(a, reference[n]) for n, a in parameters_of(network).items())
