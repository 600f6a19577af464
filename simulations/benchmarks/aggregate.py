"""Exact aggregation beside a plain int64 sum of the same bytes and Flower's own aggregation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fleet.federate.aggregate import PartialSum, quantise
from server.flower import become_task
from simulations.bench import measure, report

__all__ = ["run"]

LARGEST_WEIGHT = 1024
# Flower's side holds each update twice more, so a large fleet is added without it.
LARGEST_FLOWER_BYTES = 2**30

Steps = np.ndarray[Any, np.dtype[np.int64]]
Entries = np.ndarray[Any, np.dtype[np.float32]]


def run(updates: int, entries: int, runs: int) -> dict[str, Any]:
    """Time adding ``updates`` of ``entries`` float32 each and taking their mean.

    ``stored-updates`` adds them as the server keeps them, float32; ``exact-sum`` adds steps that
    were quantised before, the very integers of the plain sum.
    """
    rng = np.random.default_rng(0)
    flats = [rng.normal(0, 0.01, entries).astype(np.float32) for _ in range(updates)]
    steps = [quantise(flat) for flat in flats]
    weights = rng.integers(1, LARGEST_WEIGHT + 1, updates).tolist()
    sides: dict[str, Callable[[], object]] = {
        "plain-int64-sum": lambda: _plain(steps),
        "exact-sum": lambda: PartialSum.of(zip(steps, weights, strict=True), entries).mean(),
        "stored-updates": lambda: PartialSum.of_entries(
            zip(flats, weights, strict=True), entries
        ).mean(),
    }
    with_flower = updates * entries * 4 <= LARGEST_FLOWER_BYTES
    if with_flower:
        sides["flower-fedavg"] = _flower(flats, weights)
    work = {"updates": updates, "bytes each": entries * 4}
    record = report(measure(sides, runs), "plain-int64-sum", work)
    record["notes"] = [
        f"{name}: {updates / side['median']:,.0f} updates/s, "
        f"{1 / side['ratio']:.0%} of the plain sum's speed"
        for name, side in record["sides"].items()
    ]
    if not with_flower:
        record["notes"].append("flower-fedavg left out: it would hold each update twice more")
    return record


def _plain(steps: list[Steps]) -> Steps:
    total = np.zeros_like(steps[0])
    for step in steps:
        np.add(total, step, out=total)
    return total


def _flower(flats: list[Entries], weights: list[int]) -> Callable[[], object]:
    become_task()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    strategy = FedAvg()
    asked = Message(RecordDict(), dst_node_id=1, message_type="train", ttl=60.0, group_id="bench")
    replies = []
    for flat, weight in zip(flats, weights, strict=True):
        content = RecordDict(
            {
                "arrays": ArrayRecord({"packed": Array(flat)}),
                "metrics": MetricRecord({"num-examples": weight}),
                "config": ConfigRecord({}),
            }
        )
        replies.append(Message(content, reply_to=asked))
    return lambda: strategy.aggregate_train(1, replies)
