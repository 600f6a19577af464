"""What is left of a round when training is free: real coordinator, real messages, no learning.

Once over the in-process grid, whose messages are deflated and inflated as on the wire, once over
the cohort grid, whose messages stay objects. Beside them, the same plans, updates and exact sums as
bare function calls without any message.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fleet.adapt.state import CoreState, Layout
from fleet.federate.admission import Admitted, Bounds, admit
from fleet.federate.aggregate import PartialSum
from fleet.federate.records import WIRE_FORMAT, Plan, UpdateHeader
from fleet.federate.releases import Release
from fleet.federate.wire import Payload, Scalar, Update, decode_plan, encode_plan, encode_update
from server.coordinator import RoundRecord, Rules, Task, begin
from server.messages import content_of, payload_of
from server.rounds import Reports, Shell, Traffic
from simulations.bench import Measurement, report
from simulations.cohort.grid import CohortGrid
from simulations.inprocess import InProcessGrid

__all__ = ["run"]

ENTRIES = 512  # 2 kB
DIGEST = "0" * 64
LAYOUT = Layout.of({"conv.core": (ENTRIES, 1)})


class _Nowhere:
    """A sink that counts."""

    def __init__(self) -> None:
        self.accepted = 0
        self.wire_bytes = 0

    def publish(self, record: RoundRecord, release: Release | None, traffic: Traffic) -> None:
        self.accepted += len(record.accepted)
        self.wire_bytes += traffic.wire_bytes_up + traffic.wire_bytes_down

    def evaluated(self, release: Release, results: Mapping[str, NDArray[np.int64]]) -> None:
        """Nothing is evaluated."""

    def served(self, release: Release, reports: Reports) -> None:
        """Nothing is served."""

    def answered(self, round_number: int, device: str, of: int) -> None:
        """Nothing is shown."""


def run(devices: int, rounds: int) -> dict[str, Any]:
    """Time ``rounds`` of ``devices`` 2 kB updates, once each side."""
    before = _peak_megabytes()
    start = time.perf_counter()
    bare = _bare(devices, rounds)
    second = time.perf_counter()
    # The leaner side first: a peak of memory never falls.
    fast = _over_cohort_grid(devices, rounds)
    third = time.perf_counter()
    peak = _peak_megabytes() - before
    sink = _over_grid(devices, rounds)
    end = time.perf_counter()
    measured = {
        "bare-calls": _once(second - start),
        "coordinator-over-cohort-grid": _once(third - second),
        "coordinator-over-grid": _once(end - third),
    }
    record = report(measured, "bare-calls", {"devices": devices, "rounds": rounds})
    messages = devices * rounds
    record["peak_megabytes_above_import"] = round(_peak_megabytes() - before, 1)
    record["cohort_grid_megabytes_above_import"] = round(peak, 1)
    record["notes"] = [
        f"{sink.accepted} updates accepted over the grid, {bare} by bare calls",
        f"{fast.accepted} updates accepted over the cohort grid, "
        f"{'the same' if fast.wire_bytes == sink.wire_bytes else 'OTHER'} bytes on the wire",
        f"{(end - third) / messages * 1e3:.2f} ms per device and round over the grid, "
        f"{(third - second) / messages * 1e3:.2f} ms over the cohort grid",
        f"{record['peak_megabytes_above_import']} MB of memory above the imports, "
        f"{record['cohort_grid_megabytes_above_import']} MB with the cohort grid alone",
        f"{sink.wire_bytes / messages:,.0f} B on the wire per device and round",
    ]
    return record


def _bare(devices: int, rounds: int) -> int:
    accepted = 0
    state = CoreState.zero(LAYOUT)
    for number in range(1, rounds + 1):
        plan = _plan(number, state)
        message = encode_plan(plan, state)
        total = PartialSum.empty(LAYOUT.size)
        for index in range(devices):
            name = f"device-{index:05d}"
            verdict = admit(_answer(name, message), plan, LAYOUT, name, Bounds())
            if isinstance(verdict, Admitted):
                total = total.add(verdict.steps, verdict.weight)
                accepted += 1
        total.mean()
    return accepted


def _over_grid(devices: int, rounds: int) -> _Nowhere:
    app = ClientApp()

    @app.query("status")
    def status(message: Message, context: Context) -> Message:
        config = ConfigRecord(
            {"device": _name(context), "train_windows": 1, "test_windows": 1, "reason": ""}
        )
        return Message(RecordDict({"config": config}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        answer = _answer(_name(context), payload_of(message.content))
        return Message(content_of(answer), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    return _run_on(InProcessGrid(app, devices), devices, rounds)


class _Ready:
    """A fleet whose devices answer at once, with what those of the other grid answer."""

    def status(self, partition: int) -> Payload:
        config: dict[str, Scalar] = {"device": _device(partition), "reason": ""}
        config |= {"train_windows": 1, "test_windows": 1}
        return Payload(np.zeros(0, np.float32), config)

    def train(self, message: Payload, partitions: Sequence[int]) -> list[Payload | Exception]:
        return [_answer(_device(each), message) for each in partitions]

    def evaluate(
        self, message: Payload, partitions: Sequence[int]
    ) -> list[NDArray[np.int64] | Exception]:
        return [np.zeros((1, 1), np.int64) for _ in partitions]

    def close(self) -> None:
        pass


def _over_cohort_grid(devices: int, rounds: int) -> _Nowhere:
    return _run_on(CohortGrid(_Ready(), devices), devices, rounds)


def _run_on(grid: InProcessGrid | CohortGrid, devices: int, rounds: int) -> _Nowhere:
    sink = _Nowhere()
    task = Task("core", 1, LAYOUT, "sgd", 0.1, 0.9, 1, 32, 4096, 0)
    release = Release(0, DIGEST, DIGEST, "", "core", CoreState.zero(LAYOUT))
    shell = Shell(grid, grid.clock, grid.wait, sink, "bench", rounds + 1, grid.weigh)
    shell.run(begin(Rules(rounds, minimum=devices), task, release), evaluate_start=False)
    return sink


def _name(context: Context) -> str:
    return _device(int(context.node_config["partition-id"]))


def _device(partition: int) -> str:
    return f"device-{partition:05d}"


def _answer(device: str, message: Payload) -> Payload:
    plan = decode_plan(message)
    header = UpdateHeader(
        format=WIRE_FORMAT,
        plan=plan.id,
        device=device,
        base=plan.base,
        frame=plan.frame,
        layout=plan.layout,
        examples=100,
        steps=1,
        loss=0.0,
    )
    delta = CoreState.from_flat(LAYOUT, np.full(ENTRIES, 0.001, np.float32))
    return encode_update(Update(header, delta))


def _plan(number: int, state: CoreState) -> Plan:
    return Plan(
        round=number,
        base=DIGEST,
        frame=DIGEST,
        layout=LAYOUT.digest,
        release=number - 1,
        state=state.digest,
        method="core",
        rank=1,
        epochs=1,
        batch=32,
        optimiser="sgd",
        learning_rate=0.1,
        momentum=0.9,
        seed=0,
        weight_cap=4096,
        deadline_s=600,
    )


def _once(seconds: float) -> Measurement:
    return Measurement(seconds, seconds, seconds, 1)


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
