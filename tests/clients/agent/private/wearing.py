"""A person who wears the sensor turned, on a device that learns for itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clients.agent.answering.held import Held
from clients.agent.answering.world import World
from clients.agent.cli.root import run
from clients.agent.private.cores import PrivateCores
from clients.agent.private.settings import Personal
from clients.agent.serving.model import DeviceModel
from clients.agent.store import SplitRule, WindowBatch, open_store
from clients.agent.store.personal import PersonalRow
from fleet.federate.releases import Release
from tests.clients.agent.answering.devices import (
    NOON,
    Device,
    opened,
    release_message,
    train_message,
)
from tests.clients.agent.serving.factories import CHANNELS, LABELS, MEAN, STD, WINDOW

ON = Personal(on=True, epochs=4, rate=2.0)
TURN = np.array([[0, -1, 0], [1, 0, 0], [0, 0, -1]], np.float32)


@dataclass
class Wearer:
    """A device and its private core."""

    device: Device
    cores: PrivateCores
    state: Path

    def set(self, personal: Personal) -> None:
        config = self.device.config
        config[0] = config[0].model_copy(update={"personal": personal})

    def bring(self, release: Release) -> None:
        """Answer a plan that starts from a release, which the device serves from then on."""
        self.device.ask("train", train_message(release, epochs=1))

    def serve(self, release: Release) -> None:
        self.device.ask("query.release", release_message(release))

    def model(self) -> DeviceModel:
        return DeviceModel(self.state)

    @property
    def row(self) -> PersonalRow:
        row = self.device.store.personal.get()
        assert row is not None
        return row

    @property
    def release_digest(self) -> str:
        """Digest of the kernels of the release that the fleet is told of."""
        served = self.device.serving.served
        assert served is not None
        return served.digest


@contextmanager
def worn(state: Path, world: World, personal: Personal = ON, **policy: Any) -> Iterator[Wearer]:
    with opened(state, world, **policy) as device:
        held = Held(state, device.store, device.serving, "0")
        cores = PrivateCores(device.agent, held, lambda: device.config[0], world)
        wearer = Wearer(device, cores, state)
        wearer.set(personal)
        yield wearer


def commands(state: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """A device's command, which returns its document: one with data where it did what it should."""

    def ask(*words: str) -> dict[str, Any]:
        code = run([*words, "--state", str(state), "--format", "json"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert (code == 0) == ("data" in found), found
        return found

    return ask


def wear(state: Path, count: int = 80, person: str = "ada", seed: int = 0) -> None:
    """Put a person's windows with labels into a device's store; each class moves in its own way."""
    with open_store(state, clock=lambda: NOON.timestamp()) as store:
        start = np.arange(count, dtype=np.float64) * 10 + seed * 100_000
        x = movements(count, seed)
        batch = WindowBatch(start_s=start, end_s=start + 1, signals=x)
        store.windows.add(person, "own", batch, SplitRule(kind="train"))
        for number, at in enumerate(start):
            label = LABELS[number % len(LABELS)]
            store.labels.range(person, float(at), float(at) + 1, label, person)


def movements(count: int, seed: int) -> NDArray[np.float32]:
    """Windows ``(count, channels, window)`` in the base's units, of a sensor that is turned."""
    random = np.random.default_rng(seed)
    ways = np.random.default_rng(7).normal(size=(len(LABELS), CHANNELS, WINDOW))
    x = 2 * ways[np.arange(count) % len(LABELS)] + random.normal(size=(count, CHANNELS, WINDOW))
    turned = np.einsum("ij,njt->nit", TURN, x)
    made = turned * np.array(STD)[:, None] + np.array(MEAN)[:, None]
    return np.asarray(made, np.float32)
