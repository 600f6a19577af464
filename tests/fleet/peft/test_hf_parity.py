"""Our LoRA and DoRA against HF PEFT's on the same weights: outputs, gradients, merged kernels."""

from __future__ import annotations

import copy
from types import ModuleType

import pytest
import torch
from torch import nn

from fleet.peft.dora import attach_dora
from fleet.peft.lora import KernelBranch, attach_lora, merge_lora

RANK, ALPHA = 3, 6.0


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    return pytest.importorskip(
        "peft", reason="HF PEFT comes with the bench extra: pip install -e '.[bench]'"
    )


def network_1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(5, 8, 8, stride=2, padding=3),
        nn.ReLU(),
        nn.Conv1d(8, 6, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv1d(6, 4, 1),
    )


def network_2d() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(5, 8, (5, 3), stride=(2, 1), padding=(2, 1)),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1, bias=False),
    )


CASES = {
    "1d": (network_1d, (7, 5, 20)),
    "2d": (network_2d, (7, 5, 12, 6)),
}


def theirs(peft: ModuleType, network: nn.Module, *, magnitude: bool) -> nn.Module:
    """HF PEFT's network with factors (and magnitudes) that have left their start."""
    targets = [name for name, m in network.named_modules() if isinstance(m, (nn.Conv1d, nn.Conv2d))]
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=targets, use_dora=magnitude, lora_dropout=0.0
    )
    module = peft.inject_adapter_in_model(config, copy.deepcopy(network)).double().train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=generator)
            if "lora_magnitude" in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 2, generator=generator))
    return module


def parts(layer: nn.Module, *, magnitude: bool) -> dict[str, nn.Parameter]:
    """HF PEFT's parameters of one layer under our names."""
    found = {"down": layer.lora_A["default"].weight, "up": layer.lora_B["default"].weight}
    if magnitude:
        found["magnitude"] = layer.lora_magnitude_vector["default"].weight
    return found


@pytest.mark.parametrize("magnitude", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_gradients_and_merged_kernels_are_hf_peft_s(
    case: str, magnitude: bool, peft: ModuleType
) -> None:
    torch.manual_seed(0)
    make, shape = CASES[case]
    network = make().double()
    other = theirs(peft, network, magnitude=magnitude)
    attach = attach_dora if magnitude else attach_lora
    ours = attach(network, RANK, alpha=ALPHA, seed=5)
    branches = {n: m for n, m in ours.named_modules() if isinstance(m, KernelBranch)}
    assert len(branches) == len(network) // 2 + 1
    with torch.no_grad():
        for name, branch in branches.items():
            for part, value in parts(other.get_submodule(name), magnitude=magnitude).items():
                own = branch.get_parameter(part)
                own.copy_(value.view(own.shape))
    x = torch.randn(shape, dtype=torch.float64)
    wanted = other(x)
    weights = torch.randn(wanted.shape, dtype=torch.float64)
    torch.testing.assert_close(ours(x), wanted, rtol=1e-10, atol=1e-10)
    assert (wanted - network(x)).abs().max() > 0.1

    (other(x) * weights).sum().backward()
    (ours(x) * weights).sum().backward()
    for name, branch in branches.items():
        for part, value in parts(other.get_submodule(name), magnitude=magnitude).items():
            own = branch.get_parameter(part)
            torch.testing.assert_close(own.grad, value.grad.view(own.shape), rtol=1e-9, atol=1e-9)

    merged = merge_lora(ours)
    for name in branches:
        layer = other.get_submodule(name)
        layer.merge()
        torch.testing.assert_close(
            merged.get_submodule(name).weight, layer.base_layer.weight, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("magnitude", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("case", CASES)
def test_both_train_the_same_number_of_entries(
    case: str, magnitude: bool, peft: ModuleType
) -> None:
    network = CASES[case][0]()
    other = theirs(peft, network, magnitude=magnitude)
    ours = (attach_dora if magnitude else attach_lora)(network, RANK, seed=0)
    counts = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, other)]
    assert counts[0] == counts[1]
