from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from fleet.adapt.fold import fold
from fleet.peft.memf_lora import MemFLoRABranch, memf_lora
from fleet.peft.tuner import Start


def lone(layer: nn.Module, norm: nn.Module, seed: int = 0) -> Start:
    """Make a convolution and a batch norm with statistics that matter, in float64."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in (layer.weight, norm.bias, norm.running_mean):
            tensor.normal_(generator=generator)
        norm.running_var.uniform_(0.3, 2.0, generator=generator)
        norm.weight.uniform_(-2.0, 2.0, generator=generator)
    raw = nn.Sequential(layer, norm).double().eval()
    return Start(raw, fold(raw), {}, rank=2, seed=seed)


def grouped(seed: int = 0) -> Start:
    layer = nn.Conv1d(6, 4, 3, stride=2, padding=1, groups=2, bias=False)
    return lone(layer, nn.BatchNorm1d(4), seed)


def moved(start: Start) -> tuple[nn.Module, MemFLoRABranch]:
    module = memf_lora.attach(start).module
    branch = module[0]
    assert isinstance(branch, MemFLoRABranch)
    with torch.no_grad():
        branch.up.normal_(generator=torch.Generator().manual_seed(1))
    return module, branch


def test_the_branch_is_the_papers_which_joins_before_the_batch_norm() -> None:
    start = grouped()
    module, branch = moved(start)
    x = torch.randn(3, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    narrow = functional.conv1d(x, branch.down.repeat(2, 1).unsqueeze(-1), groups=2)
    wide = functional.conv1d(narrow, branch.up, stride=2, padding=1, groups=2)
    layer, norm = start.raw
    torch.testing.assert_close(module(x), norm(layer(x) + wide), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_the_merged_kernel_is_the_branch_under_every_padding(mode: str) -> None:
    layer = nn.Conv2d(3, 5, (3, 2), padding=(2, 1), dilation=(1, 2), padding_mode=mode)
    module, branch = moved(lone(layer, nn.BatchNorm2d(5)))
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    merged = branch.layer._conv_forward(x, branch.kernel(), branch.layer.bias)
    torch.testing.assert_close(merged, module(x), rtol=1e-10, atol=1e-10)


def test_the_delta_of_hand_placed_entries_can_be_read_by_eye() -> None:
    layer = nn.Conv1d(2, 2, 3)
    branch = MemFLoRABranch(layer, torch.tensor([[1.0, 10.0]]), torch.tensor([2.0, -1.0]))
    with torch.no_grad():
        branch.up[0, 0, 1] = 3.0
        branch.up[1, 0, 2] = 4.0
    wanted = [[[0, 6, 0], [0, 60, 0]], [[0, 0, -4], [0, 0, -40]]]
    assert branch.delta().tolist() == wanted


def test_without_a_batch_norm_and_for_a_filter_of_zeros_the_scale_is_one() -> None:
    layer = nn.Conv1d(2, 3, 3).requires_grad_(False)
    layer.weight[1] = 0.0
    network = nn.Sequential(layer).eval()
    branch = memf_lora.attach(Start(network, fold(network), {}, rank=1, seed=0)).module[0]
    torch.testing.assert_close(branch.scale.flatten(), torch.ones(3))


def test_gradients_of_the_up_are_those_of_finite_differences_and_of_the_merged_kernel() -> None:
    _, branch = moved(grouped())
    x = torch.randn(2, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x.requires_grad_(True)

    def forward(up: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(branch, {"up": up}, (x,))

    assert torch.autograd.gradcheck(forward, (branch.up, x))
    fused = branch.layer._conv_forward(x, branch.kernel(), branch.layer.bias)
    beside = torch.autograd.grad(branch(x).square().sum(), (branch.up, x))
    merged = torch.autograd.grad(fused.square().sum(), (branch.up, x))
    torch.testing.assert_close(beside, merged, rtol=1e-10, atol=1e-10)


def test_every_device_has_the_same_down_and_every_layer_its_own() -> None:
    one, other = (memf_lora.attach(grouped(seed)).module[0].down for seed in (1, 2))
    assert torch.equal(one, other)
    pair = nn.Sequential(nn.Conv1d(3, 3, 3), nn.Conv1d(3, 3, 3)).eval()
    first, second = memf_lora.attach(Start(pair, fold(pair), {}, rank=2, seed=0)).module
    assert not torch.equal(first.down, second.down)


def test_what_a_step_keeps_is_the_narrow_input_and_not_the_whole_one() -> None:
    wide = nn.Sequential(nn.Conv1d(64, 8, 3, bias=False)).eval()
    branch = memf_lora.attach(Start(wide, fold(wide), {}, rank=2, seed=0)).module[0]
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        branch(torch.randn(4, 64, 32))
    assert (4, 2, 32) in kept
    assert (4, 64, 32) not in kept
