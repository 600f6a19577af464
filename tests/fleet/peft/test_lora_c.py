from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fleet.errors import ModelError
from fleet.peft.lora import LoRAConvolution
from fleet.peft.lora_c import LoRACConvolution, attach_lora_c, lora_c
from fleet.peft.tuner import Start

MakeStart = Callable[..., Start]


def test_t_resnet_at_rank_one_trains_the_published_number_of_parameters(
    start_of: MakeStart,
) -> None:
    start = start_of("t-resnet", channels=97, classes=17, window=60, rank=1)
    trained = sum(p.numel() for p in lora_c.attach(start).trainable().values())
    assert trained == 6185
    assert round(100 * trained / 560_915, 3) == 1.103


def test_a_2d_kernel_is_the_product_read_row_by_row() -> None:
    branch = LoRACConvolution(nn.Conv2d(2, 3, (3, 2)), 1, 1.0)
    assert branch.down.shape == (1, 3 * 2)
    assert branch.up.shape == (2 * 3, 1)
    with torch.no_grad():
        branch.down.copy_(torch.tensor([[1.0, 2, 3, 4, 5, 6]]))
        branch.up.copy_(torch.tensor([[1.0], [10], [0], [100], [0], [0]]))
    delta = branch.delta()
    # The first output channel takes the product's first two rows: its two input channels, 3×2 each.
    assert delta[0, 0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert delta[0, 1].tolist() == [[10, 20], [30, 40], [50, 60]]
    assert delta[1, 0].tolist() == [[0, 0], [0, 0], [0, 0]]
    assert delta[1, 1].tolist() == [[100, 200], [300, 400], [500, 600]]
    assert not delta[2].any()


def test_on_a_1d_kernel_the_same_factors_make_the_update_of_lora() -> None:
    layer = nn.Conv1d(4, 6, 5, padding=2).double()
    ours, other = LoRACConvolution(layer, 2, 3.0), LoRAConvolution(layer, 2, 3.0)
    with torch.no_grad():
        ours.up.normal_(generator=torch.Generator().manual_seed(0))
        other.up.copy_(ours.up)
        other.down.copy_(ours.down.view(2, 4, 5))
    torch.testing.assert_close(ours.delta(), other.delta(), rtol=1e-12, atol=1e-12)
    x = torch.randn(3, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), other(x), rtol=1e-12, atol=1e-12)


def test_the_product_is_scaled_by_alpha_over_the_rank(start_of: MakeStart) -> None:
    folded = start_of().folded
    plain, scaled = (attach_lora_c(folded, 4, seed=1, alpha=alpha) for alpha in (None, 1.0))
    with torch.no_grad():
        plain.conv2.up.fill_(0.5)
        scaled.conv2.up.fill_(0.5)
    torch.testing.assert_close(scaled.conv2.delta(), plain.conv2.delta() / 4)


def test_the_first_factor_starts_gaussian_with_a_variance_of_one_over_the_fan_in() -> None:
    branch = LoRACConvolution(nn.Conv1d(100, 8, 5), 40, 40.0, torch.Generator().manual_seed(0))
    values = branch.down.detach() * 500**0.5
    assert abs(float(values.std()) - 1) < 0.02
    assert abs(float(values.mean())) < 0.02
    assert abs(float((values.abs() < 1).float().mean()) - 0.6827) < 0.01


def test_a_3d_kernel_is_refused() -> None:
    with pytest.raises(ModelError, match="not 3") as caught:
        LoRACConvolution(nn.Conv3d(2, 3, 3), 1, 1.0)
    assert caught.value.code == "lora-c-kernel"
