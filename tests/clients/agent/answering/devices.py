"""A device with a small base, people and labelled windows, and a world that tests turn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np

from clients.agent.answering import Agent, World
from clients.agent.answering.held import Held
from clients.agent.answering.releases import WANTED
from clients.agent.answering.world import Cadence
from clients.agent.config import DeviceConfig
from clients.agent.policy import Policy
from clients.agent.power.readings import Readings
from clients.agent.serving.serve import Serving
from clients.agent.store import SplitRule, Store, WindowBatch, open_store
from clients.link.records import Request
from fleet.federate.records import Plan
from fleet.federate.releases import Release, catch_up
from fleet.federate.wire import Payload, encode_plan
from tests.clients.agent.serving.factories import LABELS, layout_of, raw_windows

NAME = "kitchen-1"
NOON = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)


@dataclass
class Turned:
    """Clocks and sensors that a test sets."""

    seconds: float = 0.0
    shift_s: float = 0.0
    readings: Readings = field(default_factory=lambda: Readings(temperature_c=40.0, on_mains=True))
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def world(self, **changes: Any) -> World:
        def say(event: str, **values: Any) -> None:
            self.events.append((event, values))

        made = World(
            now=lambda: NOON.timestamp() + self.seconds + self.shift_s,
            monotonic=lambda: self.seconds,
            local=lambda: NOON + timedelta(seconds=self.seconds + self.shift_s),
            read=lambda: self.readings,
            say=say,
            cadence=Cadence(busy_s=0.05),
        )
        return replace(made, **changes)

    def said(self, event: str) -> list[dict[str, Any]]:
        return [values for name, values in self.events if name == event]


@dataclass
class Device:
    """An agent with what it works on."""

    agent: Agent
    store: Store
    serving: Serving
    config: list[DeviceConfig]

    def ask(self, kind: str, payload: Payload, limit_s: float = 60.0) -> Any:
        return self.agent.answer(Request(kind, payload, limit_s))

    def set_policy(self, **values: Any) -> None:
        self.config[0] = device_config(**values)


def device_config(**policy: Any) -> DeviceConfig:
    return DeviceConfig(name=NAME, policy=Policy(**{"only_on_mains": False, **policy}))


@contextmanager
def opened(state: Path, world: World, **policy: Any) -> Iterator[Device]:
    """Open a state directory as the daemon does."""
    with open_store(state, clock=world.now) as store:
        serving, config = Serving(state), [device_config(**policy)]
        agent = Agent(Held(state, store, serving, "0"), lambda: config[0], world)
        yield Device(agent, store, serving, config)


def at_look(number: int, happens: Callable[[], object]) -> Callable[[], Readings]:
    """Sensors that say nothing; something happens at a look at them, the first being 0."""
    looks = itertools.count()

    def read() -> Readings:
        if next(looks) == number:
            happens()
        return Readings()

    return read


def cut_off_at(device: Device, release: Release) -> None:
    """Take a release as far as a message comes that is cut off."""
    device.store.state.put(WANTED, device.serving.take(release).name)


def fill(state: Path, train: int = 24, held_out: int = 12, person: str = "ada") -> None:
    """Put windows with labels into a device's store; held out too few for a probe."""
    with open_store(state, clock=lambda: NOON.timestamp()) as store:
        for side, count, seed in (("train", train, 1), ("held-out", held_out, 2)):
            start = np.arange(count, dtype=np.float64) * 10 + seed * 100_000
            batch = WindowBatch(start_s=start, end_s=start + 1, signals=raw_windows(count, seed))
            store.windows.add(person, side, batch, SplitRule(kind=side))  # type: ignore[arg-type]
            for number, at in enumerate(start):
                label = LABELS[number % len(LABELS)]
                store.labels.range(person, float(at), float(at) + 1, label, person)


def plan_of(release: Release, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "round": release.number + 1,
        "base": release.base,
        "frame": release.frame,
        "layout": release.state.layout.digest,
        "release": release.number,
        "state": release.state.digest,
        "method": "core",
        "rank": 2,
        "epochs": 2,
        "batch": 8,
        "optimiser": "sgd",
        "learning_rate": 0.05,
        "momentum": 0.9,
        "seed": 0,
        "weight_cap": 4096,
        "deadline_s": 600.0,
    }
    return Plan(**{**values, **changes})


def train_message(release: Release, **changes: Any) -> Payload:
    return encode_plan(plan_of(release, **changes), release.state)


def release_message(release: Release) -> Payload:
    payload = catch_up(release)
    return Payload(payload.array, {**payload.config, "method": release.method})


Opened = Callable[..., Any]
__all__ = ["LABELS", "Device", "Turned", "fill", "layout_of", "opened", "plan_of"]
