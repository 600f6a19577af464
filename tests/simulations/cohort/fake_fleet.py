"""Devices that learn nothing, as a client app and as a fleet: both answer the same, and count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from clients import bridge
from clients.agent.learner import metrics_of
from fleet.adapt.state import CoreState, Layout
from fleet.errors import InputError, RoundError
from fleet.federate.records import WIRE_FORMAT, UpdateHeader
from fleet.federate.releases import Release, first_release
from fleet.federate.wire import Payload, Scalar, Update, decode_plan, encode_update
from server import coordinator as c
from server.messages import payload_of
from server.rounds import Shell, Traffic
from simulations.cohort.grid import CohortGrid
from simulations.inprocess import InProcessGrid
from tests.fleet.federate.factories import LAYOUT, make_base

CLASSES = 3
# What a device does instead of answering a plan.
Fault = Callable[[], Exception]


@dataclass
class FakeFleet:
    """Answers from a seed; keeps which devices each call was for."""

    faults: Mapping[int, Fault] = field(default_factory=dict)
    layout: Layout = LAYOUT
    calls: list[tuple[str, list[int]]] = field(default_factory=list)
    seen: list[Payload] = field(default_factory=list)

    def status(self, partition: int) -> Payload:
        self.calls.append(("status", [partition]))
        reason = "no windows" if partition == 13 else ""
        record: dict[str, Scalar] = {"device": name(partition), "train_windows": 9}
        record["test_windows"] = 5
        return Payload(np.zeros(0, np.float32), {**record, "reason": reason})

    def train(self, message: Payload, partitions: Sequence[int]) -> list[Payload | Exception]:
        self.calls.append(("train", list(partitions)))
        self.seen.append(message)
        return [self.update(message, partition) for partition in partitions]

    def update(self, message: Payload, partition: int) -> Payload | Exception:
        if partition in self.faults:
            return self.faults[partition]()
        plan = decode_plan(message)
        random = np.random.default_rng(plan.round * 1000 + partition)
        flat = random.normal(0, 0.1, self.layout.size).astype(np.float32)
        header = UpdateHeader(
            format=WIRE_FORMAT,
            plan=plan.id,
            device=name(partition),
            base=plan.base,
            frame=plan.frame,
            layout=plan.layout,
            examples=10 + 400 * partition,
            steps=partition,
            loss=0.5,
        )
        return encode_update(Update(header, CoreState.from_flat(self.layout, flat)))

    def evaluate(
        self, message: Payload, partitions: Sequence[int]
    ) -> list[NDArray[np.int64] | Exception]:
        self.calls.append(("evaluate", list(partitions)))
        return [self.counts(partition) for partition in partitions]

    def counts(self, partition: int) -> NDArray[np.int64]:
        return np.arange(CLASSES * CLASSES).reshape(CLASSES, CLASSES) * (partition + 1)

    def app(self) -> ClientApp:
        """Return the same devices as a client app."""
        app = ClientApp()

        def answer(message: Message, make: Callable[[], object]) -> Message:
            try:
                return Message(make(), reply_to=message)  # type: ignore[call-overload,no-any-return]
            except (InputError, RoundError) as error:
                return Message(bridge.declined_content(error), reply_to=message)

        def updated(message: Message, partition: int) -> object:
            found = self.update(payload_of(message.content), partition)
            if isinstance(found, Exception):
                raise found
            return bridge.update_content(found)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            return answer(message, lambda: updated(message, partition_of(context)))

        @app.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            counts = self.counts(partition_of(context))
            return answer(message, lambda: bridge.metrics_content(metrics_of(counts)))

        @app.query("status")
        def status(message: Message, context: Context) -> Message:
            config = self.status(partition_of(context)).config
            return answer(message, lambda: bridge.status_content(config))

        return app


def name(partition: int) -> str:
    return f"device-{partition:03d}"


def partition_of(context: Context) -> int:
    return int(context.node_config["partition-id"])


@dataclass
class Kept:
    """A sink that keeps everything in memory."""

    records: list[c.RoundRecord] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)
    evaluations: dict[int, dict[str, list[int]]] = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)

    def publish(self, record: c.RoundRecord, release: Release | None, traffic: Traffic) -> None:
        self.records.append(record)
        self.traffic.append(traffic)
        if release is not None:
            self.releases.append(release)

    def evaluated(self, release: Release, results: Mapping[str, NDArray[np.int64]]) -> None:
        self.evaluations[release.number] = {d: r.ravel().tolist() for d, r in results.items()}

    def served(self, release: Release, reports: object) -> None:
        raise AssertionError("a simulated device serves nothing")

    def answered(self, round_number: int, device: str, of: int) -> None:
        self.answers.append(device)


def run(grid: InProcessGrid | CohortGrid, *, minimum: int, rounds: int = 2) -> Kept:
    """Run rounds over a grid of fake devices; return all that came of it."""
    kept = Kept()
    task = c.Task("core", 2, LAYOUT, "sgd", 0.1, 0.9, 1, 32, 4096, 0)
    rules = c.Rules(rounds=rounds, minimum=minimum, deadline_s=60.0, wait_s=30.0)
    shell = Shell(grid, grid.clock, grid.wait, kept, "core", weigh=grid.weigh, classes=CLASSES)
    shell.run(c.begin(rules, task, first_release(make_base(), "core", LAYOUT)))
    return kept


def refusals(record: c.RoundRecord) -> Iterable[tuple[str, str, str]]:
    return sorted((each.device, each.reason.value, each.detail) for each in record.refused)
