from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fleet.adapt.digest import digest_arrays
from fleet.adapt.fold import ChannelAffine, fold
from fleet.adapt.network import parameters_of
from fleet.errors import ModelError
from fleet.models.config import ModelConfig
from fleet.models.registry import build

Age = Callable[..., nn.Module]


def pair(conv: nn.Module) -> nn.Sequential:
    norm = nn.BatchNorm2d if isinstance(conv, nn.Conv2d) else nn.BatchNorm1d
    return nn.Sequential(conv, norm(conv.out_channels), nn.ReLU())


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv1d": (lambda: pair(nn.Conv1d(4, 6, 3, bias=False)), (3, 4, 12)),
    "conv1d with a bias": (lambda: pair(nn.Conv1d(4, 6, 3)), (3, 4, 12)),
    "padded and strided": (lambda: pair(nn.Conv1d(4, 6, 5, stride=2, padding=2)), (3, 4, 12)),
    "circular padding": (
        lambda: pair(nn.Conv1d(4, 6, 5, padding=2, padding_mode="circular")),
        (3, 4, 12),
    ),
    "grouped": (lambda: pair(nn.Conv1d(4, 6, 3, groups=2)), (3, 4, 12)),
    "depthwise": (lambda: pair(nn.Conv1d(4, 8, 3, groups=4)), (3, 4, 12)),
    "conv2d": (lambda: pair(nn.Conv2d(4, 6, 3, padding=1)), (2, 4, 7, 5)),
    "conv2d dilated": (lambda: pair(nn.Conv2d(4, 6, 3, dilation=2, bias=False)), (2, 4, 9, 7)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_folded_network_gives_the_outputs_of_the_raw_one(
    case: str, dtype: torch.dtype, tolerance: float, aged: Age
) -> None:
    make, shape = CASES[case]
    raw = aged(make()).to(dtype).eval()
    folded = fold(raw)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.testing.assert_close(folded(x), raw(x), rtol=tolerance, atol=tolerance)
    assert isinstance(folded[1], nn.Identity)
    assert folded[0].weight.dtype == dtype


@pytest.mark.parametrize("name", ["small-cnn", "t-resnet"])
def test_a_folded_backbone_gives_the_outputs_of_the_raw_one(name: str, aged: Age) -> None:
    config = ModelConfig(name=name, channels=3, classes=4, window=16)
    raw = aged(build(config)).double().eval()
    x = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fold(raw)(x), raw(x), rtol=1e-12, atol=1e-12)


def test_the_formula_holds_on_one_channel_by_hand() -> None:
    raw = nn.Sequential(nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1, eps=0.0)).eval()
    with torch.no_grad():
        raw[0].weight.fill_(3.0)
        raw[0].bias.fill_(1.0)
        raw[1].weight.fill_(2.0)
        raw[1].bias.fill_(5.0)
        raw[1].running_mean.fill_(7.0)
        raw[1].running_var.fill_(16.0)
    folded = fold(raw)
    assert folded[0].weight.item() == 3.0 * 2 / 4
    assert folded[0].bias.item() == 5.0 + (1.0 - 7.0) * 2 / 4


def test_a_batch_norm_on_a_padded_convolutions_input_stays_and_the_border_is_right(
    aged: Age,
) -> None:
    raw = nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 6, 5, padding=2, bias=False))
    raw = aged(raw).double().eval()
    folded = fold(raw)
    assert isinstance(folded[0], ChannelAffine)
    torch.testing.assert_close(folded[1].weight, raw[1].weight, rtol=0, atol=0)
    x = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    got, wanted = folded(x), raw(x)
    torch.testing.assert_close(got[..., 0], wanted[..., 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_the_border_of_a_padded_convolution_before_its_norm_is_right(aged: Age) -> None:
    raw = aged(pair(nn.Conv1d(4, 6, 7, padding=3, bias=False))).double().eval()
    x = torch.ones(1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(fold(raw)(x), raw(x), rtol=1e-12, atol=1e-12)


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 4, 3, padding=1)
        self.two = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.two(self.norm(self.one(x))))


class SharedConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.one(self.one(x)))


class OutputUsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        return self.norm(y) + y


class Between(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv1d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.relu(self.one(x)))


@pytest.mark.parametrize("network", [SharedNorm, SharedConvolution, OutputUsedTwice, Between])
def test_a_batch_norm_that_is_not_alone_after_its_convolution_is_not_folded(
    network: type[nn.Module], aged: Age
) -> None:
    raw = aged(network()).double().eval()
    folded = fold(raw)
    assert isinstance(folded.norm, ChannelAffine)
    x = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(folded(x), raw(x), rtol=1e-12, atol=1e-12)


class ByKeyword(OutputUsedTwice):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(input=self.one(x))


def test_a_batch_norm_called_by_keyword_is_folded(aged: Age) -> None:
    raw = aged(ByKeyword()).double().eval()
    folded = fold(raw)
    assert isinstance(folded.norm, nn.Identity)
    x = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(folded(x), raw(x), rtol=1e-12, atol=1e-12)


def test_a_batch_norm_after_a_linear_layer_stays_as_an_affine_map(aged: Age) -> None:
    raw = aged(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))).double().eval()
    folded = fold(raw)
    assert isinstance(folded[1], ChannelAffine)
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(folded(x), raw(x), rtol=1e-12, atol=1e-12)


def test_a_batch_norm_without_weights_folds() -> None:
    raw = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3, affine=False)).double().eval()
    raw[1].running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = torch.ones(1, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(fold(raw)(x), raw(x), rtol=1e-12, atol=1e-12)


def test_a_batch_norm_without_statistics_is_refused() -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ModelError) as caught:
        fold(network)
    assert caught.value.code == "norm-without-statistics"


def test_folding_again_gives_the_same_bits(aged: Age) -> None:
    raw = aged(build(ModelConfig(name="t-resnet", channels=3, classes=4, window=16)))
    digests = {digest_arrays(parameters_of(fold(raw))) for _ in range(3)}
    assert len(digests) == 1


def test_folding_a_folded_network_changes_nothing(aged: Age) -> None:
    raw = aged(build(ModelConfig(name="small-cnn", channels=3, classes=4, window=16)))
    once = fold(raw)
    assert digest_arrays(parameters_of(fold(once))) == digest_arrays(parameters_of(once))


def test_the_folded_bits_of_a_tiny_layer_are_the_golden_ones() -> None:
    raw = nn.Sequential(nn.Conv1d(2, 3, 2), nn.BatchNorm1d(3))
    with torch.no_grad():
        for count, tensor in enumerate([*raw.parameters(), raw[1].running_mean], start=1):
            values = torch.arange(1, tensor.numel() + 1, dtype=torch.float32)
            tensor.copy_((values / (7 * count)).reshape(tensor.shape))
        raw[1].running_var.copy_(torch.tensor([0.5, 1.0, 3.0]))
    assert digest_arrays(parameters_of(fold(raw))) == (
        "510df7f07420a4c75fe5c1775bfca2cd7f393084cc3ff028d7765f5299a6f8ff"
    )


def test_the_original_is_not_changed(aged: Age) -> None:
    raw = aged(build(ModelConfig(name="small-cnn", channels=3, classes=4, window=16))).train()
    before = {name: tensor.clone() for name, tensor in raw.state_dict().items()}
    folded = fold(raw)
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.fill_(0.0)
    assert raw.training
    assert not folded.training
    assert isinstance(raw.norm1, nn.BatchNorm1d)
    assert raw.state_dict().keys() == before.keys()
    for name, tensor in raw.state_dict().items():
        assert torch.equal(tensor, before[name])


class DataDependent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else x


def test_a_network_whose_path_depends_on_the_data_is_refused() -> None:
    with pytest.raises(ModelError, match="DataDependent cannot be followed") as caught:
        fold(DataDependent())
    assert caught.value.code == "untraceable"
    assert caught.value.hint
