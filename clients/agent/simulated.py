"""Learners of virtual devices: each person of a data set is one device.

Used by the in-process grid and inside Flower's simulation runtime alike; both know a device by its
partition id and find data and base through the run configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from clients.agent.learner import Learner, Windows
from fleet.adapt.base import Base, load_base
from fleet.config import RunConfig
from fleet.errors import MismatchError
from fleet.har.normalise import Normalisation
from fleet.har.population import Population, population_of, share_windows

__all__ = ["learner_of"]

# Learners hold a device's windows; beyond this many they are made again when they are needed.
LARGEST_LEARNERS_HELD = 64


def learner_of(run_config: Mapping[str, bool | int | float | str], partition: int) -> Learner:
    """Return the learner of a virtual device.

    Args:
        run_config: The run's configuration in Flower's spelling; ``base`` names the base's file.
        partition: Index into the fleet's people.

    Raises:
        MismatchError: ``no-such-person`` when the fleet has fewer people.
    """
    return _learner(json.dumps(dict(run_config), sort_keys=True), partition)


@lru_cache(maxsize=LARGEST_LEARNERS_HELD)
def _learner(text: str, partition: int) -> Learner:
    config, population, base = _setting(text)
    if partition >= len(population.fleet):
        raise MismatchError(
            "no-such-person",
            f"this fleet has {len(population.fleet)} people; there is none for node {partition}",
            f"Start with num-supernodes={len(population.fleet)}.",
        )
    record = base.record
    normalisation = Normalisation(
        np.array(record.mean, np.float32), np.array(record.std, np.float32)
    )
    share, train, test = share_windows(
        population,
        population.fleet[partition],
        normalisation,
        train_fraction=config.train_fraction,
        seed=config.seed,
    )
    windows = Windows(train.x, train.y, test.x, test.y)
    reason = "no labelled windows to train on" if not len(train.y) else ""
    return Learner(
        share.name, base, windows, reason=reason, memory_budget_bytes=config.memory_budget
    )


@lru_cache(maxsize=2)
def _setting(text: str) -> tuple[RunConfig, Population, Base]:
    config = RunConfig.parse(json.loads(text))
    path = Path(config.base) if config.base else Path(config.out) / "base.safetensors"
    return config, population_of(config), _base(path)


@lru_cache(maxsize=2)
def _base(path: Path) -> Base:
    return load_base(path)
