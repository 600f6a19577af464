from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fleet.adapt.fold import BatchNorm, fold
from fleet.errors import ModelError
from fleet.peft.batch_norm import bn
from fleet.peft.tuner import Start

MakeStart = Callable[..., Start]


def test_t_resnet_trains_the_published_share_of_its_parameters(start_of: MakeStart) -> None:
    start = start_of("t-resnet", channels=97, classes=17, window=60)
    total = sum(p.numel() for p in start.raw.parameters())
    channels = sum(m.num_features for m in start.raw.modules() if isinstance(m, BatchNorm))
    trained = sum(p.numel() for p in bn.attach(start).trainable().values())
    assert total == 560_915
    assert trained == 2 * channels == 3138
    assert round(100 * trained / total, 3) == 0.559


@pytest.mark.parametrize("name", ["small-cnn", "t-resnet"])
def test_the_mean_of_merged_kernels_is_the_merge_of_the_mean_scales_and_shifts(
    name: str, start_of: MakeStart
) -> None:
    start = start_of(name, dtype=torch.float64)
    devices = [bn.attach(start) for _ in range(3)]
    mean = bn.attach(start)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for device in devices:
            for parameter in device.trainable().values():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        for key, parameter in mean.trainable().items():
            parameter.copy_(sum(device.trainable()[key] for device in devices) / 3)
    merged = [dict(device.merge().named_parameters()) for device in devices]
    for key, parameter in mean.merge().named_parameters():
        wanted = sum(kernels[key] for kernels in merged) / 3
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-12, atol=1e-12)


def test_statistics_stay_the_base_s_whatever_is_trained(
    start_of: MakeStart, x: torch.Tensor
) -> None:
    start = start_of(dtype=torch.float64)
    tuned = bn.attach(start)
    tuned.calibrate(x)
    tuned.module(x).sum().backward()
    for name, buffer in tuned.module.named_buffers():
        assert torch.equal(buffer, start.raw.get_buffer(name))
    whole, alone = tuned.module(x), tuned.module(x[:1])
    torch.testing.assert_close(whole[:1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("network", "code"),
    [
        (nn.Sequential(nn.Conv1d(3, 4, 3)), "nothing-to-train"),
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, affine=False)), "nothing-to-train"),
        (
            nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, track_running_stats=False)),
            "norm-without-statistics",
        ),
    ],
)
def test_a_network_that_cannot_be_tuned_by_its_norms_is_refused(
    network: nn.Module, code: str
) -> None:
    with pytest.raises(ModelError) as caught:
        bn.attach(Start(network, network, {}, rank=1, seed=0))
    assert caught.value.code == code


def test_merging_is_folding(start_of: MakeStart) -> None:
    start = start_of("t-resnet")
    merged, folded = bn.attach(start).merge().state_dict(), fold(start.raw).state_dict()
    assert merged.keys() == folded.keys()
    assert all(torch.equal(merged[name], folded[name]) for name in folded)
