"""Before the first round: a base, trained on source people or read from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fleet.adapt.attach import adaptable_layers, make_frames, single_thread
from fleet.adapt.base import Base, BaseRecord, load_base
from fleet.adapt.fold import fold
from fleet.adapt.frames import FrameKind, check_rank
from fleet.adapt.network import folded_network
from fleet.config import RunConfig
from fleet.errors import MismatchError
from fleet.har.normalise import Normalisation, fit
from fleet.har.population import Population, windows_of
from fleet.models.config import ModelConfig
from fleet.models.pretrain import pretrain
from fleet.models.registry import build

__all__ = ["check_feasible", "normalisation_of", "obtain_base", "reframe", "train_base"]

# More windows would not move a frame's scale visibly.
CALIBRATION_WINDOWS = 1024

OnEpoch = Callable[[int, float], None]


def check_feasible(config: RunConfig, population: Population) -> None:
    """Refuse a base, model or rank that cannot be, before anything is trained or written.

    Raises:
        StorageError: When the base that is named is not there or not whole.
        MismatchError: ``base-data``.
        ModelError: ``unknown-model``.
        FrameError: ``rank-too-large``.
    """
    if config.base:
        _check_fits(load_base(Path(config.base)), population, config.base)
    network = fold(build(_model_of(config, population)))
    for name, layer in adaptable_layers(network)[0].items():
        check_rank(
            layer.get_parameter("weight").shape,
            config.frame,
            config.rank,
            groups=int(getattr(layer, "groups", 1)),
            layer=name,
        )


def obtain_base(config: RunConfig, population: Population, on_epoch: OnEpoch | None = None) -> Base:
    """Return the base of a run: the file that it names, or one trained on its source people.

    Raises:
        MismatchError: ``base-data`` when the file's classes, channels or windows are not the
        data's.
    """
    if not config.base:
        return train_base(config, population, population.source, on_epoch=on_epoch)
    base = load_base(Path(config.base))
    _check_fits(base, population, config.base)
    return reframe(base, population, config.frame, config.rank)


def train_base(
    config: RunConfig,
    population: Population,
    people: tuple[int, ...],
    *,
    epochs: int = 0,
    purpose: str = "base",
    on_epoch: OnEpoch | None = None,
) -> Base:
    """Train a network on people's windows and make a base of it.

    Args:
        config: Architecture, frames, seed and epochs.
        population: The data.
        people: Whose windows to train on; normalisation comes from them alone.
        epochs: Passes over the windows; 0 for the configuration's.
        purpose: Seed purpose, so that two networks of one run differ.
        on_epoch: Called with the epoch (from 1) and its mean loss.
    """
    dataset = population.dataset
    model = _model_of(config, population)
    normalisation = fit(dataset, people)
    source = windows_of(population, people, normalisation)
    epochs = epochs or config.base_epochs
    with single_thread():
        network = pretrain(
            model,
            source.x,
            source.y,
            seed=config.seed,
            epochs=epochs,
            purpose=purpose,
            on_epoch=on_epoch,
        )
    record = BaseRecord(
        model=model,
        labels=dataset.labels,
        channels=tuple((c.name, c.unit) for c in dataset.channels),
        rate_hz=dataset.rate_hz,
        window=dataset.window,
        stride=dataset.stride,
        mean=tuple(map(float, normalisation.mean)),
        std=tuple(map(float, normalisation.std)),
        trained_on=f"{dataset.name}: people {', '.join(map(str, people))}; {epochs} epochs",
        frame_kind=config.frame,
        rank=config.rank,
    )
    arrays = {name: np.array(t.numpy()) for name, t in network.state_dict().items()}
    frames = make_frames(fold(network), config.frame, config.rank, _calibration(source.x))
    return Base(record, arrays, frames)


def reframe(base: Base, population: Population, kind: FrameKind, rank: int) -> Base:
    """Return the base with frames of another kind or rank, made anew from its folded kernels.

    Done on the server only, and the result is another base with another digest; nothing changes
    when kind and rank are those that it has.
    """
    if (base.record.frame_kind, base.record.rank) == (kind, rank):
        return base
    record = base.record.model_copy(update={"frame_kind": kind, "rank": rank})
    source = windows_of(population, population.source, normalisation_of(base))
    frames = make_frames(folded_network(base), kind, rank, _calibration(source.x))
    return replace(base, record=record, frames=frames)


def _calibration(x: NDArray[np.float32]) -> torch.Tensor:
    """Return at most :data:`CALIBRATION_WINDOWS` windows, evenly spaced over all."""
    return torch.from_numpy(x[:: -(-len(x) // CALIBRATION_WINDOWS)])


def normalisation_of(base: Base) -> Normalisation:
    """Return the normalisation that a base carries."""
    record = base.record
    return Normalisation(np.array(record.mean, np.float32), np.array(record.std, np.float32))


def _model_of(config: RunConfig, population: Population) -> ModelConfig:
    dataset = population.dataset
    return ModelConfig(
        name=config.model,
        channels=len(dataset.channels),
        classes=len(dataset.labels),
        window=dataset.window,
    )


def _check_fits(base: Base, population: Population, path: str) -> None:
    record, dataset = base.record, population.dataset
    for what, has, needs in (
        ("classes", record.labels, dataset.labels),
        ("channels", record.channels, tuple((c.name, c.unit) for c in dataset.channels)),
        ("samples per window", record.window, dataset.window),
        ("rate", record.rate_hz, dataset.rate_hz),
    ):
        if has != needs:
            raise MismatchError(
                "base-data",
                f"the base {path} has {what} {has}, the data set {dataset.name} has {needs}",
                "Train a base on this data: fleet base train.",
            )
