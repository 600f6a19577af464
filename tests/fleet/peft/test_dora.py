from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fleet.peft.dora import DoRAConvolution, dora
from fleet.peft.lora import lora
from fleet.peft.tuner import Start

MakeStart = Callable[..., Start]


def moved(layer: nn.Conv1d | nn.Conv2d) -> DoRAConvolution:
    """A double-precision branch whose factors and magnitude have left their start."""
    generator = torch.Generator().manual_seed(2)
    branch = DoRAConvolution(layer.double(), 2, 3.0, generator)
    with torch.no_grad():
        branch.up.normal_(generator=generator)
        branch.magnitude.uniform_(0.5, 2.0, generator=generator)
    return branch


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(4, 6, 5, stride=2, padding=2), nn.Conv2d(4, 6, (3, 1), bias=False)],
    ids=["1d", "2d"],
)
def test_every_channel_of_the_kernel_has_its_magnitude_and_the_direction_of_lora(
    layer: nn.Conv1d | nn.Conv2d,
) -> None:
    branch = moved(layer)
    kernel, plain = branch.kernel(), layer.weight + branch.delta()
    torch.testing.assert_close(kernel.flatten(1).norm(dim=1), branch.magnitude)
    cosine = torch.cosine_similarity(kernel.flatten(1), plain.flatten(1))
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_the_magnitude_starts_at_the_norm_of_each_output_channel_s_kernel(
    start_of: MakeStart,
) -> None:
    start = start_of("t-resnet")
    tuned = dora.attach(start)
    for name, value in tuned.trainable().items():
        if name.endswith("magnitude"):
            kernel = start.folded.get_parameter(name.replace("magnitude", "weight"))
            torch.testing.assert_close(value.detach(), kernel.square().sum(dim=(1, 2)).sqrt())


def test_gradients_are_those_of_the_dense_formula_with_its_norm_held_constant() -> None:
    layer = nn.Conv1d(4, 6, 5, stride=2, padding=2)
    branch = moved(layer)
    x = torch.randn(3, 4, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(branch(x).shape, dtype=torch.float64)
    (branch(x) * weights).sum().backward()
    named = {n: p for n, p in branch.named_parameters() if n in ("down", "up", "magnitude")}
    a, b, m = (named[n].detach().clone().requires_grad_(True) for n in ("down", "up", "magnitude"))
    direction = layer.weight.detach() + 1.5 * torch.einsum("or,rik->oik", b, a)
    norm = direction.detach().flatten(1).norm(dim=1)
    kernel = (m / norm)[:, None, None] * direction
    out = nn.functional.conv1d(x, kernel, layer.bias, stride=2, padding=2)
    torch.testing.assert_close(out, branch(x), rtol=1e-12, atol=1e-12)
    (out * weights).sum().backward()
    for ours, wanted in ((branch.down, a), (branch.up, b), (branch.magnitude, m)):
        torch.testing.assert_close(ours.grad, wanted.grad, rtol=1e-10, atol=1e-10)


def test_a_channel_of_zeros_stays_zero_and_finite() -> None:
    layer = nn.Conv1d(3, 2, 3)
    with torch.no_grad():
        layer.weight[0] = 0
    branch = DoRAConvolution(layer, 1, 1.0)
    out = branch(torch.randn(2, 3, 5))
    out.square().sum().backward()
    torch.testing.assert_close(out[:, 0], layer.bias[0].expand(2, 3))
    assert all(bool(torch.isfinite(p.grad).all()) for p in (branch.up, branch.magnitude))


def test_it_trains_one_magnitude_per_output_channel_beside_the_factors_of_lora(
    start_of: MakeStart,
) -> None:
    start = start_of()
    ours, other = dora.attach(start).trainable(), lora.attach(start).trainable()
    assert {n for n in ours if not n.endswith("magnitude")} == other.keys()
    extra = sum(p.numel() for p in ours.values()) - sum(p.numel() for p in other.values())
    assert extra == 64 + 128 + 128
