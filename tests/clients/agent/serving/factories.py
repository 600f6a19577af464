"""A small base, a chain of releases of it, and windows to judge them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clients.agent.serving.kept import KeptRelease
from clients.agent.serving.serve import Serving
from fleet.adapt.attach import make_frames
from fleet.adapt.base import Base, BaseRecord
from fleet.adapt.fold import fold
from fleet.adapt.network import folded_network
from fleet.adapt.state import Layout
from fleet.federate.releases import Release, first_release, next_release
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from fleet.peft.registry import find

LABELS = ("walk", "sit", "stand", "lie")
CHANNELS, WINDOW, STRIDE, RATE_HZ = 3, 16, 8, 50.0
MEAN, STD = (0.5, -1.0, 9.8), (2.0, 0.5, 3.0)


def make_base(seed: int = 0) -> Base:
    config = ModelConfig(name="small-cnn", channels=CHANNELS, classes=len(LABELS), window=WINDOW)
    network = build(config, seed=seed).eval()
    x = torch.randn(256, CHANNELS, WINDOW, generator=torch.Generator().manual_seed(9)) * 2
    with torch.no_grad():  # else nearly all windows are of one class
        network.get_parameter("head.bias").sub_(network(x).mean(dim=0))
    return base_of(network, config)


def base_of(network: torch.nn.Module, config: ModelConfig) -> Base:
    """The base of a network that is as far as it goes, in evaluation mode."""
    record = BaseRecord(
        model=config,
        labels=LABELS,
        channels=(("acc_x", "m/s^2"), ("acc_y", "m/s^2"), ("acc_z", "m/s^2")),
        rate_hz=RATE_HZ,
        window=WINDOW,
        stride=STRIDE,
        mean=MEAN,
        std=STD,
        rank=2,
    )
    arrays = {key: np.array(value.numpy()) for key, value in network.state_dict().items()}
    return Base(record, arrays, make_frames(fold(network), "svd", 2))


def layout_of(base: Base) -> Layout:
    return find("core").layout(folded_network(base), base.frames)


def chain_of(base: Base, length: int, step: float = 0.05) -> list[Release]:
    """Releases 0 to ``length``, each moved from the one before by a random mean."""
    releases = [first_release(base, "core", layout_of(base))]
    random = np.random.default_rng(0)
    for _ in range(length):
        size = releases[-1].state.layout.size
        mean = np.round(random.normal(0, step, size) * 2**32).astype(np.int64)
        releases.append(next_release(releases[-1], mean, {}))
    return releases


def raw_windows(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Windows in the base's units."""
    x = np.random.default_rng(seed).normal(size=(count, CHANNELS, WINDOW))
    x = x * np.array(STD)[None, :, None] * 2 + np.array(MEAN)[None, :, None]
    return np.asarray(x, np.float32)


def probabilities_of(base: Base, release: Release, windows: NDArray[np.float32]) -> torch.Tensor:
    """What a release answers, by another path than the one under test: cores beside the kernels."""
    network = folded_network(base)
    attached = find("core").attach(network, base.frames, release.state, dtype=torch.float32)
    x = (torch.from_numpy(windows) - torch.tensor(MEAN)[:, None]) / torch.tensor(STD)[:, None]
    with torch.inference_mode():
        return torch.softmax(attached.module(x), dim=-1)


def promoted(state: Path, release: Release) -> KeptRelease:
    """Take a release and serve it."""
    serving = Serving(state)
    kept = serving.take(release)
    outcome = serving.promote(kept)
    assert outcome.swapped, outcome
    return kept
