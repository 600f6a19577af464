"""Laws of every tuner that inserts something into the folded network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.attach import make_frames
from fleet.adapt.fold import fold
from fleet.errors import ModelError
from fleet.models.config import ModelConfig
from fleet.models.registry import build, names
from fleet.peft.adapter import adapter
from fleet.peft.core_variants import core_input, core_middle, core_residual, core_svd_init
from fleet.peft.memf_lora import memf_lora
from fleet.peft.tuner import Start, Tuned, Tuner

MERGING = (memf_lora, core_middle, core_input, core_svd_init, core_residual)
ALL = (adapter, *MERGING)
FROM_BASE = tuple(tuner for tuner in ALL if tuner is not core_svd_init)


def by_name(tuner: Tuner) -> str:
    return tuner.name


def start_of(backbone: str, *, dtype: torch.dtype = torch.float32, channels: int = 3) -> Start:
    """Start from a network whose batch norms have statistics that matter."""
    raw = build(ModelConfig(name=backbone, channels=channels, classes=4, window=16), seed=2)
    generator = torch.Generator().manual_seed(4)
    for module in raw.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(0, 0.2, generator=generator)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 1.5, generator=generator)
    raw = raw.eval()
    folded = fold(raw).requires_grad_(False)
    frames = make_frames(folded, "svd", 2)
    return Start(raw.to(dtype), folded.to(dtype), frames, rank=2, seed=7)


def batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(8, 3, 16, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.arange(8) % 4


def train(tuned: Tuned, x: torch.Tensor, y: torch.Tensor, steps: int = 3) -> None:
    optimiser = tuned.optimiser("adam", 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        functional.cross_entropy(tuned.module(x), y).backward()
        optimiser.step()


@pytest.fixture(scope="module")
def small() -> Start:
    return start_of("small-cnn")


@pytest.mark.parametrize("backbone", names())
def test_on_every_backbone_training_starts_at_the_base_and_the_merged_network_is_the_trained_one(
    backbone: str,
) -> None:
    # Float64: a ReLU decision that flips makes 1e-3 out of float32's 1e-7.
    start = start_of(backbone, dtype=torch.float64)
    x, y = batch(torch.float64)
    base = start.folded(x)
    for tuner in ALL:
        tuned = tuner.attach(start)
        at_base = torch.allclose(tuned.module(x), base, atol=1e-10)
        assert at_base == (tuner in FROM_BASE), tuner.name
        train(tuned, x, y, steps=2)
        trained, served = tuned.module(x), tuned.served()
        assert (trained - base).abs().max() > 1e-4, tuner.name
        torch.testing.assert_close(served(x), trained, rtol=1e-9, atol=1e-9)
        if tuner in MERGING:
            assert str(served) == str(start.folded)
            assert [(n, p.shape) for n, p in served.named_parameters()] == [
                (n, p.shape) for n, p in start.folded.named_parameters()
            ]


@pytest.mark.parametrize("tuner", ALL, ids=by_name)
def test_in_float32_too_the_start_is_the_base_and_the_merged_network_is_the_trained_one(
    tuner: Tuner, small: Start
) -> None:
    x, y = batch()
    tuned = tuner.attach(small)
    if tuner in FROM_BASE:
        torch.testing.assert_close(tuned.module(x), small.folded(x), rtol=0, atol=1e-5)
    train(tuned, x, y)
    torch.testing.assert_close(tuned.served()(x), tuned.module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tuner", ALL, ids=by_name)
def test_neither_the_start_nor_the_global_random_state_is_changed(tuner: Tuner) -> None:
    start = start_of("small-cnn")
    for network in (start.raw, start.folded):
        network.requires_grad_(True).train()
    before = copy.deepcopy(start)
    state = torch.get_rng_state()
    tuned = tuner.attach(start)
    assert torch.equal(torch.get_rng_state(), state)
    train(tuned, *batch())
    tuned.served()
    for network, old in ((start.raw, before.raw), (start.folded, before.folded)):
        new = network.state_dict()
        assert all(torch.equal(new[name], value) for name, value in old.state_dict().items())
        assert network.training
        assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(before.frames[n].digest == f.digest for n, f in start.frames.items())


@pytest.mark.parametrize("tuner", ALL, ids=by_name)
def test_what_is_served_stays_as_it_is_when_training_goes_on(tuner: Tuner, small: Start) -> None:
    x, y = batch()
    tuned = tuner.attach(small)
    served = tuned.served()
    before = served(x)
    assert not served.training
    assert not any(p.requires_grad for p in served.parameters())
    train(tuned, x, y)
    assert torch.equal(served(x), before)


@pytest.mark.parametrize("tuner", [t for t in ALL if t.exact], ids=by_name)
def test_where_a_tuner_says_so_the_mean_of_what_is_trained_is_the_mean_of_the_kernels(
    tuner: Tuner,
) -> None:
    start = start_of("small-cnn", dtype=torch.float64)
    devices = [tuner.attach(Start(**{**vars(start), "seed": seed})) for seed in range(3)]
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for device in devices:
            for parameter in device.trainable().values():
                parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    mean = tuner.attach(start)
    with torch.no_grad():
        for name, parameter in mean.trainable().items():
            parameter.copy_(torch.stack([d.trainable()[name] for d in devices]).mean(dim=0))
    kernels = [dict(device.merge().named_parameters()) for device in devices]
    for name, parameter in mean.merge().named_parameters():
        wanted = torch.stack([k[name] for k in kernels]).mean(dim=0)
        torch.testing.assert_close(parameter, wanted, rtol=1e-10, atol=1e-10)


def test_the_adapter_does_not_say_that_averaging_is_exact() -> None:
    assert not adapter.exact


# T-ResNet's eleven convolutions. Outputs: 4·64 + 7·128 = 1,152; outputs × taps:
# 64·(8+5+3+1) + 128·(8+5+3+1) + 128·(8+5+3) = 5,312. Inputs of the nine with taps:
# 97+64+64 + 64+128+128 + 3·128 = 929, and their taps: 3·(8+5+3) = 48. Inputs of the two 1×1:
# 97+64 = 161.
COUNTS = {
    "adapter": 2 * 2 * 1152,
    "memf-lora": 2 * 5312,
    "core-middle": 2 * 2 * 929 + 2 * 161,
    "core-input": 2 * 48 + 2 * 161,
    "core-svd-init": 2304,
    "core-residual": 2304,
}


def test_t_resnet_with_97_channels_and_17_classes_trains_what_a_hand_counts() -> None:
    raw = build(ModelConfig(name="t-resnet", channels=97, classes=17, window=16)).eval()
    folded = fold(raw)
    start = Start(raw, folded, make_frames(folded, "svd", 2), rank=2, seed=0)
    for tuner in ALL:
        tuned = tuner.attach(start)
        assert sum(p.numel() for p in tuned.trainable().values()) == COUNTS[tuner.name], tuner.name
        assert tuned.update_bytes() == 4 * COUNTS[tuner.name]


@pytest.mark.parametrize("tuner", ALL, ids=by_name)
def test_the_head_can_be_trained_as_well_and_is_served(tuner: Tuner, small: Start) -> None:
    x, y = batch()
    tuned = tuner.attach(small)
    tuned.unfreeze(("head.weight", "head.bias"))
    train(tuned, x, y)
    assert not torch.equal(tuned.module.get_parameter("head.bias"), small.folded.head.bias)
    torch.testing.assert_close(tuned.served()(x), tuned.module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tuner", ALL, ids=by_name)
def test_a_network_without_a_convolution_to_adapt_and_a_rank_of_zero_are_refused(
    tuner: Tuner, small: Start
) -> None:
    depthwise = nn.Sequential(nn.Conv1d(3, 6, 3, groups=3))
    with pytest.raises(ModelError, match="no convolution") as caught:
        tuner.attach(Start(depthwise, depthwise, small.frames, rank=1, seed=0))
    assert caught.value.code == "nothing-to-train"
    with pytest.raises(ModelError, match="at least 1, not 0") as caught:
        tuner.attach(Start(**{**vars(small), "rank": 0}))
    assert caught.value.code == "rank-too-small"


@pytest.mark.parametrize("tuner", ALL, ids=by_name)
def test_a_tuner_sweeps_around_its_default_and_says_what_it_is(tuner: Tuner) -> None:
    assert tuner.default_rate in tuner.rates
    assert tuner.summary
    assert tuner.ranked
