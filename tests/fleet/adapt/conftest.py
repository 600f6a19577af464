from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.attach import make_frames
from fleet.adapt.base import Base, BaseRecord
from fleet.adapt.fold import fold
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from tests.fleet.lived_in import lived_in


@pytest.fixture(scope="session")
def aged() -> Callable[..., nn.Module]:
    return lived_in


@dataclass(frozen=True)
class Small:
    """A small CNN with statistics of its own, its folded form and uncalibrated frames."""

    config: ModelConfig
    raw: nn.Module
    folded: nn.Module


@pytest.fixture(scope="session")
def small() -> Small:
    config = ModelConfig(name="small-cnn", channels=3, classes=4, window=16)
    raw = lived_in(build(config, seed=3)).eval()
    return Small(config, raw, fold(raw).requires_grad_(False))


@pytest.fixture(scope="session")
def base(small: Small) -> Base:
    """A whole base; tests must not change its arrays."""
    record = BaseRecord(
        model=small.config,
        labels=("lie", "run", "sit", "walk"),
        channels=(("x", "m/s^2"), ("y", "m/s^2"), ("z", "m/s^2")),
        rate_hz=50.0,
        window=16,
        stride=8,
        mean=(0.0, 0.5, -0.25),
        std=(1.0, 2.0, 0.5),
        trained_on="three people",
        rank=2,
    )
    arrays = {name: tensor.numpy().copy() for name, tensor in small.raw.state_dict().items()}
    return Base(record, arrays, make_frames(small.folded, "svd", 2))


@pytest.fixture
def windows() -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((9, 3, 16)).astype(np.float32)
