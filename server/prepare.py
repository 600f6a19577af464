"""Before the first round: a base, trained on source people or read from a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fleet.adapt.attach import adaptable_layers, make_frames, single_thread
from fleet.adapt.base import Base, BaseRecord, load_base
from fleet.adapt.fold import fold
from fleet.adapt.frames import LEARNED_KINDS, Frame, FrameKind, check_rank
from fleet.adapt.network import folded_network
from fleet.config import RunConfig
from fleet.errors import DataError, MismatchError
from fleet.federate.rule import read_rule
from fleet.har.normalise import Normalisation, fit
from fleet.har.partition import device_name, pool
from fleet.har.population import Population, windows_of
from fleet.har.shifts import Remount, rotate
from fleet.har.virtual import virtual_fleet
from fleet.models.config import ModelConfig
from fleet.models.pretrain import pretrain
from fleet.models.registry import build
from fleet.seeds import derive_seed
from server.events import too_few_for

__all__ = [
    "check_feasible",
    "frame_sources",
    "normalisation_of",
    "obtain_base",
    "reframe",
    "renewed_frames",
    "train_base",
]

# More windows would not move a frame's scale visibly.
CALIBRATION_WINDOWS = 1024
# Of each source person and simulated shift, a learned frame sees at most so many windows.
SOURCE_WINDOWS = 256
# Simulated shifts of each source person. They do not follow the run's own shift: a server that
# prepares a fleet does not know how its sensors will sit.
SIMULATED_DEGREES = (15.0, 30.0, 45.0)

OnEpoch = Callable[[int, float], None]


def check_feasible(config: RunConfig, population: Population) -> None:
    """Refuse a fleet, base, model or rank that cannot be, before anything is trained or written.

    Raises:
        InputError: ``bad-shift`` for a variation that is none; ``rule-above-cohort`` when the rule
            needs more devices than a round has.
        DataError: For a variation that the channels do not allow.
        StorageError: When the base that is named is not there or not whole.
        MismatchError: ``base-data``.
        ModelError: ``unknown-model``.
        FrameError: ``rank-too-large``.
    """
    devices = len(virtual_fleet(config, population))
    rule, asked = read_rule(config.rule), min(config.cohort or devices, devices)
    if asked < rule.fewest:
        raise too_few_for(rule, asked, "a round")
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
    return reframe(base, population, config.frame, config.rank, seed=config.seed)


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
    rank, seed = config.rank, config.seed
    frames = _frames(fold(network), population, people, normalisation, config.frame, rank, seed)
    return Base(record, arrays, frames)


def reframe(
    base: Base, population: Population, kind: FrameKind, rank: int, *, seed: int = 0
) -> Base:
    """Return the base with frames of another kind or rank, made anew from its folded kernels.

    Done on the server only, and the result is another base with another digest; nothing changes
    when kind and rank are those that it has.

    Args:
        base: The base.
        population: The data; its source people calibrate the frames, and teach the learned kinds.
        kind: Frame kind.
        rank: Columns of each core.
        seed: Root of the simulated shifts behind a learned kind.
    """
    if (base.record.frame_kind, base.record.rank) == (kind, rank):
        return base
    record = base.record.model_copy(update={"frame_kind": kind, "rank": rank})
    normalisation, people = normalisation_of(base), population.source
    network = folded_network(base)
    frames = _frames(network, population, people, normalisation, kind, rank, seed)
    return replace(base, record=record, frames=frames)


def renewed_frames(base: Base, population: Population, *, seed: int = 0) -> Base:
    """Return the base with frames of its own kind and rank, made anew from its folded kernels.

    For a base whose kernels have moved (:func:`fleet.continual.growth.rebased`); done on the server
    only. Frames of kind ``random`` depend on layers' names alone, so they stay but for their scale.

    Args:
        base: The base.
        population: The data; its source people calibrate the frames, and teach the learned kinds.
        seed: Root of the simulated shifts behind a learned kind.

    Raises:
        FrameError: When the kernels have no such frames.
    """
    kind, rank = base.record.frame_kind, base.record.rank
    normalisation, people = normalisation_of(base), population.source
    network = folded_network(base)
    frames = _frames(network, population, people, normalisation, kind, rank, seed)
    return replace(base, frames=frames)


def frame_sources(
    population: Population, people: tuple[int, ...], normalisation: Normalisation, *, seed: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the batches that learned frames are made from.

    Args:
        population: The data.
        people: Source people.
        normalisation: Of the base.
        seed: Root of the simulated shifts.

    Returns:
        One batch per person and simulated shift: windows ``(n, channels, window)`` float32 and
        labels ``(n,)`` int64, n at most :data:`SOURCE_WINDOWS`, evenly spaced over the person's.
        Where no channels form a three-axis sensor, one batch per person as it was worn.
    """
    dataset, batches = population.dataset, []
    for person in people:
        rows = pool(dataset, [person])
        rows = rows[:: -(-len(rows) // SOURCE_WINDOWS)]
        physical, y = dataset.physical(rows), torch.from_numpy(dataset.y[rows].astype(np.int64))
        for x in _simulated(physical, population, device_name(person), seed):
            batches.append((torch.from_numpy(normalisation.apply(x)), y))
    return batches


def _simulated(
    x: NDArray[np.float32], population: Population, device: str, seed: int
) -> list[NDArray[np.float32]]:
    """Return windows in physical units under each simulated shift, or as they are."""
    turned = []
    for number, degrees in enumerate(SIMULATED_DEGREES):
        # A seed of its own for each device and shift gives each an axis of its own, and none of
        # them is the axis of the run.
        own = derive_seed(seed, number, device, "frames")
        try:
            rotation = Remount(degrees).rotation(own, device)
            turned.append(rotate(x, population.dataset.channels, rotation))
        except DataError as error:
            if error.code != "no-triples":
                raise
            return [x]
    return turned


def _frames(
    folded: nn.Module,
    population: Population,
    people: tuple[int, ...],
    normalisation: Normalisation,
    kind: FrameKind,
    rank: int,
    seed: int,
) -> dict[str, Frame]:
    """Make frames that people's windows calibrate, and teach where the kind is learned."""
    sources = None
    if kind in LEARNED_KINDS:
        sources = frame_sources(population, people, normalisation, seed=seed)
    windows = _calibration(windows_of(population, people, normalisation).x)
    return make_frames(folded, kind, rank, windows, sources=sources, seed=seed)


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
