"""Learners of virtual devices: each is a person of a data set, or made of one.

Used by the in-process grid and inside Flower's simulation runtime alike; both know a device by its
partition id and find data and base through the run configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from clients.agent.learner import Learner, Windows, Workbench, workbench
from clients.agent.residuals import Residuals
from fleet.adapt.base import Base, load_base
from fleet.config import RunConfig
from fleet.errors import MismatchError
from fleet.federate.records import DeviceStatus
from fleet.federate.wire import Payload
from fleet.har.normalise import Normalisation
from fleet.har.population import population_of
from fleet.har.virtual import VirtualFleet, virtual_fleet

__all__ = ["answer_of", "bench_of", "learner_of", "residuals_of", "status_of"]

# Learners hold a device's windows; beyond this many they are made again when they are needed.
LARGEST_LEARNERS_HELD = 128
NOTHING_TO_LEARN = "no labelled windows to train on"

Config = Mapping[str, bool | int | float | str]


def learner_of(run_config: Config, partition: int) -> Learner:
    """Return the learner of a virtual device.

    Args:
        run_config: The run's configuration in Flower's spelling; ``base`` names the base's file.
        partition: Which device of the fleet.

    Raises:
        MismatchError: ``no-such-person`` when the fleet has fewer devices.
    """
    return _learner(_key(run_config), partition)


def answer_of(run_config: Config, partition: int, message: Payload) -> Payload:
    """Answer a plan as a virtual device, see :meth:`clients.agent.learner.Learner.answer_plan`."""
    return residuals_of(run_config).answer(learner_of(run_config, partition), partition, message)


def residuals_of(run_config: Config) -> Residuals:
    """Return what a run's devices keep in this process, see :func:`learner_of`."""
    return _residuals(_key(run_config))


def bench_of(run_config: Config) -> Workbench:
    """Return what all learners of a run share, see :func:`learner_of`."""
    return workbench(_setting(_key(run_config))[2])


def status_of(run_config: Config, partition: int) -> DeviceStatus:
    """Return what a virtual device's learner would say of itself, without making its windows.

    Args:
        run_config: See :func:`learner_of`.
        partition: Which device of the fleet.

    Raises:
        MismatchError: ``no-such-person`` when the fleet has fewer devices.
    """
    fleet = _fleet_with(_key(run_config), partition)
    share = fleet.share(partition)
    return DeviceStatus(
        device=share.name,
        train_windows=len(share.train),
        test_windows=len(share.test),
        reason="" if len(share.train) else NOTHING_TO_LEARN,
    )


def _key(run_config: Config) -> str:
    return json.dumps(dict(run_config), sort_keys=True)


def _fleet_with(text: str, partition: int) -> VirtualFleet:
    """Return the fleet of a run that has this device."""
    fleet = _setting(text)[1]
    if partition >= len(fleet):
        kind = "devices" if fleet.devices else "people"
        raise MismatchError(
            "no-such-person",
            f"this fleet has {len(fleet)} {kind}; there is none for node {partition}",
            f"Start with num-supernodes={len(fleet)}.",
        )
    return fleet


@lru_cache(maxsize=LARGEST_LEARNERS_HELD)
def _learner(text: str, partition: int) -> Learner:
    fleet = _fleet_with(text, partition)
    config, _, base = _setting(text)
    record = base.record
    normalisation = Normalisation(
        np.array(record.mean, np.float32), np.array(record.std, np.float32)
    )
    train, test = fleet.windows(partition, normalisation)
    windows = Windows(train.x, train.y, test.x, test.y)
    reason = "" if len(train.y) else NOTHING_TO_LEARN
    name, budget = fleet.name(partition), config.memory_budget
    return Learner(name, base, windows, reason=reason, memory_budget_bytes=budget)


@lru_cache(maxsize=2)
def _residuals(text: str) -> Residuals:
    return Residuals()


@lru_cache(maxsize=2)
def _setting(text: str) -> tuple[RunConfig, VirtualFleet, Base]:
    config = RunConfig.parse(json.loads(text))
    path = Path(config.base) if config.base else Path(config.out) / "base.safetensors"
    return config, virtual_fleet(config, population_of(config)), _base(path)


@lru_cache(maxsize=2)
def _base(path: Path) -> Base:
    return load_base(path)
