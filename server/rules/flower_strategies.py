"""Flower's own strategies as rules.

They take absolute arrays, not deltas, and carry moments in their attributes, while our devices send
deltas, releases move in steps of 2⁻³² and a coordinator holds no state of its own. This is the one
place that goes between the two; tests/server/rules/test_flower_contract.py holds each attribute to
what is relied on here.

Every device's core is handed over as the release's plus its delta, in float64: a sum in float32
would round away what Krum compares once cores have grown. Devices come in the order of their names,
so that no order of arrival shows, and the result is quantised as updates are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvgM,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    Strategy,
)
from numpy.typing import NDArray

from fleet.errors import RoundError
from fleet.federate.admission import Admitted
from fleet.federate.aggregate import dequantise, quantise
from fleet.federate.releases import Release
from fleet.federate.rule import RuleSpec
from server import flower
from server.rules.exact import exact_mean
from server.rules.memory import Memory
from server.rules.protocol import Closed, Rule

__all__ = ["ServerOptimiser", "SingleUpdates", "aggregate", "rule_of"]

Cores = NDArray[np.float64]
# All cores are one array: these strategies work entry by entry, or on all entries at once.
CORES = "cores"
# Of a reply that no device sends; a strategy reads its records alone.
ANY_NODE = 1


def rule_of(spec: RuleSpec) -> Rule:
    """Return the rule of one of Flower's strategies."""
    return ServerOptimiser(spec) if spec.remembers else SingleUpdates(spec)


@dataclass(frozen=True)
class SingleUpdates:
    """Median, trimmed mean, Krum and MultiKrum: rules that compare devices with each other.

    The first two and Krum leave weights out of account: how many windows a device has is its own
    word.
    """

    spec: RuleSpec

    def close(self, release: Release, updates: Mapping[str, Admitted], memory: Memory) -> Closed:
        """Aggregate a round, see :class:`server.rules.protocol.Rule`."""
        before = _flat(release)
        sent = {device: updates[device] for device in sorted(updates)}
        cores = [(before + dequantise(each.steps), each.weight) for each in sent.values()]
        mean = quantise(aggregate(self._strategy(len(sent)), cores) - before)
        if self.spec.name != "krum":
            return Closed(mean)
        followed = [name for name, each in sent.items() if np.array_equal(each.steps, mean)]
        return Closed(mean, record={"followed": followed})

    def _strategy(self, devices: int) -> Strategy:
        value = self.spec.value or 0
        if self.spec.name == "median":
            return FedMedian()
        if self.spec.name == "trimmed":
            return FedTrimmedAvg(beta=float(value))
        liars = int(value)
        if self.spec.name == "krum":
            return Krum(num_malicious_nodes=liars)
        # As many as can be chosen with the paper's guarantee.
        chosen = max(1, devices - liars - 2)
        return MultiKrum(num_malicious_nodes=liars, num_nodes_to_select=chosen)


@dataclass(frozen=True)
class ServerOptimiser:
    """Momentum, Adam and Yogi: a step of the server along the exact mean."""

    spec: RuleSpec

    def close(self, release: Release, updates: Mapping[str, Admitted], memory: Memory) -> Closed:
        """Aggregate a round, see :class:`server.rules.protocol.Rule`."""
        size = release.state.layout.size
        memory = memory.of_rule(self.spec.text, size)
        before, mean = _flat(release), dequantise(exact_mean(updates, size))
        step = self._with_momentum if self.spec.name == "momentum" else self._adaptive
        after, moments = step(before, [(before + mean, 1)], memory)
        kept = Memory.of(self.spec.text, memory.steps + 1, moments)
        record = {"steps": kept.steps, "memory": kept.digest}
        return Closed(quantise(after - before), kept, record)

    def _with_momentum(
        self, before: Cores, cores: Sequence[tuple[Cores, int]], memory: Memory
    ) -> tuple[Cores, dict[str, Cores]]:
        strategy = FedAvgM(server_momentum=float(self.spec.value or 0))
        strategy.current_arrays = _packed(before)
        if memory.steps:
            strategy.momentum_vector = [memory.arrays["momentum"]]
        after = aggregate(strategy, cores)
        assert strategy.momentum_vector is not None
        return after, {"momentum": strategy.momentum_vector[0]}

    def _adaptive(
        self, before: Cores, cores: Sequence[tuple[Cores, int]], memory: Memory
    ) -> tuple[Cores, dict[str, Cores]]:
        kind = FedAdam if self.spec.name == "adam" else FedYogi
        strategy = kind(eta=float(self.spec.value or 0))
        strategy.current_arrays = {CORES: before}
        if memory.steps:
            strategy.m_t = {CORES: memory.arrays["first"]}
            strategy.v_t = {CORES: memory.arrays["second"]}
        # Adam's correction of its first steps counts the steps behind its moments.
        after = aggregate(strategy, cores, memory.steps + 1)
        assert strategy.m_t is not None
        assert strategy.v_t is not None
        return after, {"first": strategy.m_t[CORES], "second": strategy.v_t[CORES]}


def aggregate(
    strategy: Strategy, cores: Sequence[tuple[Cores, int]], round_number: int = 1
) -> Cores:
    """Return what a strategy of Flower's makes of devices' absolute cores.

    Args:
        strategy: Any whose ``aggregate_train`` needs no more than replies.
        cores: Of each device its cores, float64 ``(size,)``, and its weight; at least one.
        round_number: From 1.

    Returns:
        Cores, float64 ``(size,)``; not checked to be finite.

    Raises:
        RoundError: ``strategy`` when it returns no such array, or fails.
    """
    flower.become_task()
    name = type(strategy).__name__
    replies = [_reply(flat, weight) for flat, weight in cores]
    try:
        with _quiet():
            arrays, _ = strategy.aggregate_train(round_number, replies)
    except Exception as error:  # each strategy raises what it likes
        raise RoundError("strategy", f"{name} failed: {error}") from error
    if arrays is None or set(arrays) != {CORES}:
        raise RoundError("strategy", f"{name} made no cores of {len(cores)} update(s)")
    made = arrays[CORES].numpy().astype(np.float64)
    if made.shape != cores[0][0].shape:
        raise RoundError(
            "strategy", f"{name} made cores of shape {made.shape}, not {cores[0][0].shape}"
        )
    return made


def _flat(release: Release) -> Cores:
    flat: Cores = release.state.flat().astype(np.float64)
    return flat


def _packed(flat: Cores) -> ArrayRecord:
    return ArrayRecord({CORES: Array(flat)})


def _reply(flat: Cores, weight: int) -> Message:
    """Make a device's reply as a strategy expects it: absolute arrays, and its windows."""
    metrics: dict[str, Any] = {"num-examples": weight}
    records = RecordDict({"arrays": _packed(flat), "metrics": MetricRecord(metrics)})
    asked = Message(RecordDict(), dst_node_id=ANY_NODE, message_type="train")
    return Message(records, reply_to=asked)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep a strategy from telling the log each round what the round's record tells."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)
