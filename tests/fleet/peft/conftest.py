from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import nn

from fleet.adapt.fold import BatchNorm, fold
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.tuner import Start


@cache
def start_of(
    name: str = "small-cnn",
    *,
    channels: int = 3,
    classes: int = 4,
    window: int = 16,
    rank: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Start:
    """Start from a network whose batch norms have a scale, a shift and statistics of their own.

    Each is made once; tests must not change it, and methods do not.
    """
    config = ModelConfig(name=name, channels=channels, classes=classes, window=window)
    raw = build(config, seed=3).to(dtype)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for module in raw.modules():
            if isinstance(module, BatchNorm):
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
    raw.eval().requires_grad_(False)
    return Start(raw, fold(raw).requires_grad_(False), {}, rank=rank, seed=seed)


@pytest.fixture(scope="session", name="start_of")
def _start_of() -> Callable[..., Start]:
    return start_of


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(6, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="session")
def same_graph() -> Callable[[nn.Module, nn.Module], bool]:
    """Whether two networks have the same layers, by name, class and parameter shapes."""

    def layers(network: nn.Module) -> list[tuple[str, type, list[tuple[int, ...]]]]:
        return [
            (name, type(module), [tuple(p.shape) for p in module.parameters(recurse=False)])
            for name, module in network.named_modules()
        ]

    return lambda one, two: layers(one) == layers(two)
