"""A base that has learned something, and a person whose sensor has another gain and offset."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clients.agent.answering.world import World
from clients.agent.calibrating.settings import OwnStatistics
from clients.agent.private.settings import Personal
from clients.agent.serving.model import DeviceModel
from clients.agent.store import SplitRule, Store, WindowBatch
from fleet.adapt.base import Base
from fleet.models.config import ModelConfig
from fleet.models.registry import build
from tests.clients.agent.private.wearing import ON, Wearer, worn
from tests.clients.agent.serving.factories import (
    CHANNELS,
    LABELS,
    MEAN,
    STD,
    WINDOW,
    base_of,
)

__all__ = [
    "LEARN",
    "OWN",
    "add",
    "changed",
    "classes_of",
    "kernels_of",
    "right",
    "trained_base",
    "wearing",
    "windows_of",
]

OWN = OwnStatistics(own=True, windows=128, min_windows=16)
LEARN = ON.model_copy(update={"epochs": 3, "rate": 0.2})
GAIN, OFFSET = np.array([0.4, 2.0, 1.6]), np.array([1.5, -1.5, 2.0])
STEPS, RATE = 40, 0.1
Floats = NDArray[np.float32]


def classes_of(count: int) -> NDArray[np.int64]:
    """Classes of the windows of a stream, ``(count,)``."""
    return np.arange(count, dtype=np.int64) % len(LABELS)


def windows_of(count: int, seed: int = 0, *, changed: bool = True) -> Floats:
    """Windows ``(count, channels, window)`` in the base's units; each class has its shape."""
    shapes = np.random.default_rng(7).normal(size=(len(LABELS), CHANNELS, WINDOW))
    noise = np.random.default_rng([seed, 3]).normal(size=(count, CHANNELS, WINDOW))
    x = shapes[classes_of(count)] + 0.8 * noise
    if changed:
        x = GAIN[:, None] * x + OFFSET[:, None]
    return np.asarray(x * np.array(STD)[:, None] + np.array(MEAN)[:, None], np.float32)


def trained_base(name: str = "small-cnn", steps: int = STEPS) -> Base:
    """A base that knows the classes of a sensor that nobody has changed."""
    config = ModelConfig(name=name, channels=CHANNELS, classes=len(LABELS), window=WINDOW)
    network = build(config, seed=0).train()
    x = windows_of(256, seed=9, changed=False)
    x = (x - np.array(MEAN, np.float32)[:, None]) / np.array(STD, np.float32)[:, None]
    y = torch.from_numpy(classes_of(256))
    parameters = list(network.parameters())
    torch.manual_seed(0)
    for step in range(steps):
        rows = slice(step * 64 % 256, step * 64 % 256 + 64)
        logits = network(torch.from_numpy(x[rows]))
        loss = torch.nn.functional.cross_entropy(logits, y[rows])
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():  # an optimiser of torch would load its compiler
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(RATE * gradient)
    return base_of(network.eval(), config)


def add(
    store: Store,
    count: int,
    *,
    seed: int = 0,
    person: str = "ada",
    side: str = "train",
    labels: bool = False,
    names: tuple[str, ...] = LABELS,
) -> None:
    """Put a person's windows into a store, the n-th batch by its seed, with labels or without."""
    start = np.arange(count, dtype=np.float64) * 10 + seed * 100_000
    batch = WindowBatch(start_s=start, end_s=start + 1, signals=windows_of(count, seed))
    store.windows.add(person, side, batch, SplitRule(kind=side))  # type: ignore[arg-type]
    for number, at in enumerate(start if labels else ()):
        label = names[number % len(names)]
        store.labels.range(person, float(at), float(at) + 1, label, person)


def changed(wearer: Wearer, **tables: Any) -> None:
    """Set tables of the device's configuration."""
    config = wearer.device.config
    config[0] = config[0].model_copy(update=tables)


@contextmanager
def wearing(
    state: Path, world: World, own: OwnStatistics = OWN, personal: Personal | None = None
) -> Iterator[Wearer]:
    """Open a device with statistics of its own, and without a private core unless told."""
    with worn(state, world, personal or Personal()) as wearer:
        changed(wearer, statistics=own)
        yield wearer


def right(model: DeviceModel) -> float:
    """Share of windows that came later which a model gets right."""
    found, _ = model.predict(windows_of(200, seed=5))
    wanted = np.array(LABELS)[classes_of(200)]
    return float(np.mean(np.array(found) == wanted))


def kernels_of(wearer: Wearer) -> list[Path]:
    return sorted(wearer.device.serving.folder.own.glob("*.safetensors"))
