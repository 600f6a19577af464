"""Small networks of each topology that the lean trainer claims, and the states to train on them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from fleet.adapt.attach import adaptable_layers
from fleet.adapt.fold import fold
from fleet.adapt.frames import Frame, FrameKind, make_frame
from fleet.adapt.state import CoreState
from fleet.models.config import ModelConfig
from fleet.models.registry import build

CHANNELS, WINDOW, CLASSES = 3, 24, 4


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expand: int = 3) -> None:
        super().__init__()
        wide = inputs * expand
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            *(nn.Conv1d(inputs, wide, 1, bias=False), nn.BatchNorm1d(wide), nn.ReLU6(True)),
            nn.Conv1d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            *(nn.BatchNorm1d(wide), nn.ReLU6(True)),
            *(nn.Conv1d(wide, outputs, 1, bias=False), nn.BatchNorm1d(outputs)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return x + y if self.residual else y


class MobileLike(nn.Module):
    def __init__(
        self, channels: int = CHANNELS, classes: int = CLASSES, widths: tuple[int, ...] = (8, 12)
    ) -> None:
        super().__init__()
        self.stem = nn.Conv1d(channels, widths[0], 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm1d(widths[0])
        blocks = [InvertedResidual(widths[0], widths[0], 1)]
        for a, b in pairwise(widths):
            blocks += [InvertedResidual(a, b, 2), InvertedResidual(b, b, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.relu = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.relu(self.norm(self.stem(x))))
        return self.head(self.dropout(torch.flatten(self.pool(x), 1)))


class Concatenating(nn.Module):
    """All layers' globally pooled features side by side, after grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(CHANNELS, 8, 5, padding="same")
        self.second = nn.Conv1d(8, 8, 3, padding=2, dilation=2, groups=2)
        self.third = nn.Conv1d(16, 12, 3, groups=4)
        self.halve = nn.AvgPool1d(2)
        self.head = nn.Linear(28, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.first(x))
        b = torch.relu(self.second(a))
        c = torch.relu(self.third(self.halve(torch.cat([a, b], dim=1))))
        return self.head(torch.cat([v.mean(dim=-1) for v in (a, b, c)], dim=1))


class TwoDimensional(nn.Module):
    """The ``(C, T, 1)`` form."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, 6, (5, 1), padding=(2, 0), bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d((2, 1))
        self.conv2 = nn.Conv2d(6, 8, (3, 1), stride=(2, 1), padding=(1, 0))
        self.wide = nn.MaxPool2d((3, 1), stride=(2, 1), padding=(1, 0))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.relu(self.norm1(self.conv1(x.unsqueeze(-1)))))
        x = self.wide(self.conv2(x)).clamp(-0.5, 0.5)
        return self.head(x.mean((2, 3)).view(x.size(0), 8))


def registered(name: str) -> Callable[[], nn.Module]:
    config = ModelConfig(name=name, channels=CHANNELS, classes=CLASSES, window=WINDOW)
    return lambda: build(config)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "small-cnn": registered("small-cnn"),
    "t-resnet": registered("t-resnet"),
    "mobile-like": MobileLike,
    "concatenating": Concatenating,
    "two-dimensional": TwoDimensional,
}


def folded(make: Callable[[], nn.Module], seed: int = 3) -> nn.Module:
    """Fold a network whose batch norms have statistics that matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                for tensor in (module.running_mean, module.bias.data):
                    assert tensor is not None
                    tensor.normal_(0, 0.2)
                for tensor in (module.running_var, module.weight.data):
                    assert tensor is not None
                    tensor.uniform_(0.5, 1.5)
    return fold(network).requires_grad_(False)


def frames_of(network: nn.Module, kind: FrameKind = "svd", rank: int = 2) -> dict[str, Frame]:
    layers, _ = adaptable_layers(network)
    return {
        name: make_frame(
            layer.weight.detach().numpy(),  # type: ignore[union-attr,operator]
            *(kind, rank),
            groups=layer.groups,  # type: ignore[arg-type]
        )
        for name, layer in layers.items()
    }


def state_of(network: nn.Module, frames: dict[str, Frame], *dense: str, seed: int = 5) -> CoreState:
    """Random cores, and random deltas of the dense parameters named."""
    random, own = np.random.default_rng(seed), dict(network.named_parameters())
    shapes = {f"{n}.core": (len(own[f"{n}.weight"]), f.rank) for n, f in frames.items()}
    shapes |= {name: tuple(own[name].shape) for name in dense}
    return CoreState.of({n: 0.1 * random.standard_normal(s) for n, s in shapes.items()})


def windows(count: int = 5, dtype: torch.dtype = torch.float64, seed: int = 1) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.randn(count, CHANNELS, WINDOW, generator=source, dtype=torch.float64).to(dtype)
