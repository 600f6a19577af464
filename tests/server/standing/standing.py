"""A standing service over an in-process grid: real messages, a real registry, simulated time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients import bridge
from clients.bridge import update_content
from fleet.adapt.base import Base, save_base
from fleet.adapt.digest import digest_arrays
from fleet.adapt.network import folded_network
from fleet.config import RunConfig
from fleet.federate.records import WIRE_FORMAT
from fleet.federate.releases import first_release
from fleet.federate.served import merge_release
from fleet.federate.wire import Payload, decode_plan
from fleet.har.population import Population
from fleet.peft.core import core
from server.installed import base_in
from server.messages import payload_of
from server.registry import Registry, open_registry
from server.registry.lease import Holder
from server.standing.policy import FleetPolicy
from server.standing.service import Service
from server.standing.world import World
from simulations.inprocess import InProcessGrid
from tests.server.registry.filled import OPERATOR, key_of
from tests.simulations.tiny_fleet import RATE

EPOCH_S = 1_760_000_000.0
Answer = Callable[[Message, Context], Message]


def update(message: Message, device: str) -> Message:
    """Answer a plan without training: the same numbers for the same plan and device."""
    payload = payload_of(message.content)
    plan = decode_plan(payload)
    random = np.random.default_rng([plan.round, *map(ord, device)])
    header = {
        "format": WIRE_FORMAT,
        "plan": plan.id,
        "device": device,
        "base": plan.base,
        "frame": plan.frame,
        "layout": plan.layout,
        "examples": int(random.integers(1, 50)),
        "steps": 1,
        "loss": 0.5,
    }
    flat = random.normal(scale=0.01, size=payload.array.shape).astype(np.float32)
    return Message(update_content(Payload(flat, header)), reply_to=message)


@dataclass
class Devices:
    """Devices that serve what they are told; they train for real unless told otherwise.

    Args:
        names: By partition.
        kernels: From a release's number to the digest of its merged kernels.

    Attributes:
        fast: They make updates up.
        answers: What a device does instead, by device and kind of message.
        told: Device and release of each message that tells one to serve.
        trained: Device and plan's id of each training.
    """

    names: tuple[str, ...]
    kernels: Callable[[int], str]
    fast: bool = False
    says: dict[str, dict[str, Any]] = field(default_factory=dict)
    serves: dict[str, int] = field(default_factory=dict)
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    told: list[tuple[str, int]] = field(default_factory=list)
    told_bytes: list[int] = field(default_factory=list)
    trained: list[tuple[str, str]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    @property
    def app(self) -> ClientApp:
        """The app of all of them."""
        app = ClientApp()
        app.train()(self._answer("train"))
        app.evaluate()(self._answer("evaluate"))
        app.query("status")(self._answer("status"))
        app.query("release")(self._answer("release"))
        return app

    def _answer(self, kind: str) -> Answer:
        def answer(message: Message, context: Context) -> Message:
            device = self.names[int(str(context.node_config["partition-id"]))]
            self.asked.append((device, kind))
            if kind == "train":
                self.trained.append((device, decode_plan(payload_of(message.content)).id))
            if kind == "release":
                payload = payload_of(message.content)
                self.told.append((device, int(str(payload.config["release"]))))
                self.told_bytes.append(payload.array.nbytes)
            if (device, kind) in self.answers:
                return self.answers[device, kind](message, context)
            return self._honest(kind, device, message, context)

        return answer

    def _honest(self, kind: str, device: str, message: Message, context: Context) -> Message:
        if kind == "release":
            self.serves[device] = self.told[-1][1]
        if kind in ("release", "status"):
            return self.status(device, message)
        if kind == "train" and self.fast:
            return update(message, device)
        return bridge.app(message, context)

    def status(self, device: str, message: Message) -> Message:
        """Answer as a device that serves a release."""
        number = self.serves.get(device, 0)
        config = {
            "device": device,
            "train_windows": 20,
            "test_windows": 10,
            "reason": "",
            "serves": self.kernels(number),
            "release": number,
            **self.says.get(device, {}),
        }
        return Message(RecordDict({"config": ConfigRecord(config)}), reply_to=message)


@dataclass
class Clock:
    """Wall time that follows the grids' simulated time, one grid after the other."""

    grids: list[InProcessGrid] = field(default_factory=list)

    def __call__(self) -> float:
        return EPOCH_S + sum(grid.clock() for grid in self.grids)


@dataclass
class Fleet:
    """A registry, its devices and a service over them."""

    registry: Registry
    base: Base
    config: RunConfig
    devices: Devices
    clock: Clock
    offline: set[int] = field(default_factory=set)
    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    grid: InProcessGrid = field(init=False)
    service: Service = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    def start(self, kind: type[InProcessGrid] = InProcessGrid, **world: Any) -> Service:
        """Start the service anew, as after it was killed; its grid knows nothing of before."""
        self.grid = kind(
            self.devices.app,
            len(self.devices.names),
            run_config=self.config.for_flower(),
            offline=self.offline.__contains__,
        )
        self.clock.grids.append(self.grid)
        fields: dict[str, Any] = {
            "clock": self.clock,
            "now": self.grid.clock,
            "wait": self.grid.wait,
            "say": lambda event, **values: self.said.append((event, values)),
            "weigh": self.grid.weigh,
            "keyed": False,
            "pid": 7,
            "holder": Holder(host="lab", place="test", pid=7, ticks=len(self.clock.grids)),
            "gone": lambda holder, silent_s: True,  # whoever came before was killed
            "version": "test",
        }
        self.service = Service(self.grid, self.registry, World(**{**fields, **world}))
        return self.service

    def policy(self, **changes: Any) -> FleetPolicy:
        fields: dict[str, Any] = {
            "base": self.base.digest,
            "rank": 2,
            "learning_rate": RATE,
            "batch": 16,
            "minimum": 3,
            "quorum": 3,
            "deadline_s": 600.0,
            "every_s": 1.0,
            "rounds": 2,
        }
        policy = FleetPolicy.parse({**fields, **changes})
        self.registry.policy.set(policy, actor=OPERATOR)
        return policy

    def run(self, until: Callable[[], bool], steps: int = 60) -> None:
        """Let the service work until something is so."""
        for _ in range(steps):
            if until():
                return
            if not self.service.step():
                self.service.asking.let_pass(1.0)
        raise AssertionError(f"not after {steps} steps; last: {self.said[-3:]}")

    def steps(self, count: int) -> None:
        """Let the service look up so often."""
        for _ in range(count):
            if not self.service.step():
                self.service.asking.let_pass(1.0)

    def released(self, rounds: int) -> list[str]:
        """Let rounds be run; return the digests of all releases."""
        self.run(lambda: len(self.registry.releases.all()) > rounds)
        return [each.digest for each in self.registry.releases.all()]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return what was said under a name."""
        return [values for event, values in self.said if event == name]


@contextmanager
def fleet_in(file: Path, base: Base, people: Population, config: RunConfig) -> Iterator[Fleet]:
    """Make a fleet of enrolled people on an empty registry."""
    clock, known, bases = Clock(), dict[int, str](), {base.digest: base}
    first = first_release(base, "core", core.layout(folded_network(base), base.frames))
    with open_registry(file, clock=clock) as registry:
        for name in people.devices:
            registry.devices.enroll(name, key_of(name), actor=OPERATOR)
        path = file.with_name("base.safetensors")
        save_base(base, path)
        registry.bases.install(base.digest, path.read_bytes(), actor=OPERATOR)

        def kernels(number: int) -> str:
            if number not in known:
                release = first if number == 0 else registry.releases.load(number)
                if release.base not in bases:
                    bases[release.base] = base_in(registry.bases.content(release.base))
                known[number] = digest_arrays(merge_release(bases[release.base], release))
            return known[number]

        yield Fleet(registry, base, config, Devices(people.devices, kernels), clock)
