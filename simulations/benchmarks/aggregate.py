"""Exact aggregation beside a plain int64 sum of the same bytes and Flower's own aggregation."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fleet.federate.aggregate import PartialSum, quantise
from server.flower import become_task
from simulations.bench import measure, report

__all__ = ["run"]

WEIGHT = 128


def run(updates: int, entries: int, runs: int) -> dict[str, Any]:
    """Time adding ``updates`` of ``entries`` float32 each and taking their mean."""
    rng = np.random.default_rng(0)
    flats = [rng.normal(0, 0.01, entries).astype(np.float32) for _ in range(updates)]
    steps = [quantise(flat) for flat in flats]
    sides = {
        "plain-int64-sum": lambda: _plain(steps),
        "exact-sum": lambda: _exact(steps),
        "quantise-and-exact-sum": lambda: _exact([quantise(flat) for flat in flats]),
        "flower-fedavg": _flower(flats),
    }
    work = {"updates": updates, "bytes each": entries * 4}
    return report(measure(sides, runs), "plain-int64-sum", work)


def _plain(steps: list[np.ndarray[Any, np.dtype[np.int64]]]) -> Any:
    total = np.zeros_like(steps[0])
    for step in steps:
        np.add(total, step, out=total)
    return total


def _exact(steps: list[np.ndarray[Any, np.dtype[np.int64]]]) -> Any:
    return PartialSum.of(((step, WEIGHT) for step in steps), steps[0].size).mean()


def _flower(flats: list[np.ndarray[Any, np.dtype[np.float32]]]) -> Any:
    become_task()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    strategy = FedAvg()
    asked = Message(RecordDict(), dst_node_id=1, message_type="train", ttl=60.0, group_id="bench")
    replies = []
    for flat in flats:
        content = RecordDict(
            {
                "arrays": ArrayRecord({"packed": Array(flat)}),
                "metrics": MetricRecord({"num-examples": WEIGHT}),
                "config": ConfigRecord({}),
            }
        )
        replies.append(Message(content, reply_to=asked))
    return lambda: strategy.aggregate_train(1, replies)
