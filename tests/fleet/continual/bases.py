"""A small base with statistics of its own, for tests of what devices do with one."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.attach import make_frames
from fleet.adapt.base import Base, BaseRecord
from fleet.adapt.fold import fold
from fleet.adapt.frames import FrameKind
from fleet.adapt.network import folded_network, raw_network
from fleet.adapt.state import CoreState
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.registry import find


def lived_in(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_(generator=generator)
                module.running_var.uniform_(0.3, 2.0, generator=generator)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def make_base(kind: FrameKind = "svd", rank: int = 2, name: str = "small-cnn") -> Base:
    config = ModelConfig(name=name, channels=3, classes=4, window=32)
    raw = lived_in(build(config, seed=3))
    record = BaseRecord(
        model=config,
        labels=("lie", "run", "sit", "walk"),
        channels=(("x", "m/s^2"), ("y", "m/s^2"), ("z", "m/s^2")),
        rate_hz=50.0,
        window=32,
        stride=16,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        frame_kind=kind,
        rank=rank,
    )
    arrays = {key: tensor.numpy().copy() for key, tensor in raw.state_dict().items()}
    return Base(record, arrays, make_frames(fold(raw), kind, rank))


def windows_of(count: int, seed: int = 5) -> NDArray[np.float32]:
    made = np.random.default_rng(seed).standard_normal((count, 3, 32))
    return (made * 1.7 + 0.3).astype(np.float32)


def state_of(base: Base, method: str = "core+head", size: float = 0.05, seed: int = 1) -> CoreState:
    layout = find(method).layout(folded_network(base), base.frames)
    random = np.random.default_rng(seed).standard_normal(layout.size)
    return CoreState.from_flat(layout, (size * random).astype(np.float32))


def raw_of(base: Base) -> nn.Module:
    return raw_network(base)
