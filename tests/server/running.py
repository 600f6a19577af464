"""Runs of a small fleet over a grid, and devices that lie."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from clients import bridge
from fleet.adapt.base import Base
from fleet.federate.admission import Reason
from fleet.federate.releases import Release, first_release
from fleet.har.population import Population
from fleet.peft.core import core
from server import coordinator as c
from server.app import task_of
from server.rounds import Reports, Shell, Traffic
from simulations.inprocess import InProcessGrid
from tests.simulations.tiny_fleet import RATE, MakeConfig

# What a device does instead of sending the honest reply that it is given.
Lie = Callable[[Message, Message], Message]
LIAR = 1
CLASSES = 7


@dataclass
class Kept:
    """A sink that keeps everything in memory."""

    records: list[c.RoundRecord] = field(default_factory=list)
    releases: list[Release] = field(default_factory=list)
    traffic: list[Traffic] = field(default_factory=list)
    evaluations: dict[int, Mapping[str, NDArray[np.int64]]] = field(default_factory=dict)
    serving: dict[int, Reports] = field(default_factory=dict)
    answers: list[tuple[int, str, int]] = field(default_factory=list)
    on_publish: Callable[[int], object] = lambda number: None

    def publish(self, record: c.RoundRecord, release: Release | None, traffic: Traffic) -> None:
        self.records.append(record)
        self.traffic.append(traffic)
        if release is not None:
            self.releases.append(release)
        self.on_publish(record.round)

    def evaluated(self, release: Release, results: Mapping[str, NDArray[np.int64]]) -> None:
        self.evaluations[release.number] = results

    def served(self, release: Release, reports: Reports) -> None:
        self.serving[release.number] = reports

    def answered(self, round_number: int, device: str, of: int) -> None:
        self.answers.append((round_number, device, of))

    def reasons(self, index: int = 0) -> dict[str, Reason]:
        return {refusal.device: refusal.reason for refusal in self.records[index].refused}


def make_app(lies: Mapping[str, Lie], liar: int = LIAR) -> ClientApp:
    """Wrap the real bridge; the device ``liar`` lies in answer to the kinds of message named."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        honest = bridge.app(message, context)
        lie = lies.get(message.metadata.message_type)
        if lie is None or context.node_config["partition-id"] != liar:
            return honest
        return lie(message, honest)

    app.train()(answer)
    app.evaluate()(answer)
    app.query("status")(answer)
    return app


@dataclass
class Setting:
    """A fleet of three with everything that a run over a grid needs."""

    base: Base
    people: Population
    make_config: MakeConfig

    def grid(
        self, app: ClientApp = bridge.app, *, offline: set[int] | None = None
    ) -> InProcessGrid:
        config = self.make_config().for_flower()
        absent = offline if offline is not None else set[int]()
        return InProcessGrid(app, 3, run_config=config, offline=absent.__contains__)

    def run(self, grid: InProcessGrid, sink: Kept | None = None, **rules: Any) -> Kept:
        return self.shell_run(grid, sink, **rules)[0]

    def shell_run(
        self, grid: InProcessGrid, sink: Kept | None = None, **rules: Any
    ) -> tuple[Kept, Shell, c.State]:
        kept = sink or Kept()
        task = task_of(self.make_config(), self.base, core, RATE)
        start = first_release(self.base, "core", task.layout)
        shell = Shell(grid, grid.clock, grid.wait, kept, "core", classes=CLASSES)
        fields: dict[str, Any] = {"rounds": 1, "minimum": 3, "deadline_s": 60.0, "wait_s": 30.0}
        state = shell.run(c.begin(c.Rules(**{**fields, **rules}), task, start))
        return kept, shell, state


def raw(data: bytes, size: int = 640) -> Array:
    return Array(dtype="float32", shape=(size,), stype="numpy.ndarray", data=data)


def saved(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3, np.float32))
    return file.getvalue()


def with_array(change: Callable[[NDArray[Any]], Array | NDArray[Any]]) -> Lie:
    def lie(message: Message, honest: Message) -> Message:
        changed = change(honest.content["arrays"]["packed"].numpy().copy())  # type: ignore[union-attr,index]
        packed = changed if isinstance(changed, Array) else Array(changed)
        content = RecordDict({"arrays": ArrayRecord({"packed": packed})})
        content["config"] = honest.content["config"]
        return Message(content, reply_to=message)

    return lie


def with_config(**changes: Any) -> Lie:
    def lie(message: Message, honest: Message) -> Message:
        config = ConfigRecord({**honest.content.config_records["config"], **changes})
        content = RecordDict({"config": config, "arrays": honest.content["arrays"]})
        return Message(content, reply_to=message)

    return lie


def with_records(change: Callable[[RecordDict], object]) -> Lie:
    def lie(message: Message, honest: Message) -> Message:
        change(honest.content)
        return Message(honest.content, reply_to=message)

    return lie


def nothing(message: Message, honest: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


def failing(message: Message, honest: Message) -> Message:
    raise OSError("the sensor is gone")


def declining(message: Message, honest: Message) -> Message:
    content = RecordDict({"config": ConfigRecord({"format": 1, "declined": "hot", "detail": "80"})})
    return Message(content, reply_to=message)


def spoiled(array: NDArray[Any]) -> NDArray[Any]:
    array[0] = np.nan
    return array
