"""A small base with statistics of its own, for tests of what devices do with one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.attach import make_frames
from fleet.adapt.base import Base, BaseRecord
from fleet.adapt.fold import fold
from fleet.adapt.frames import FrameKind
from fleet.adapt.network import folded_network
from fleet.adapt.state import CoreState
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.registry import find
from tests.fleet.lived_in import lived_in


def make_base(kind: FrameKind = "svd", rank: int = 2, name: str = "small-cnn") -> Base:
    config = ModelConfig(name=name, channels=3, classes=4, window=32)
    raw = lived_in(build(config, seed=3)).eval()
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
