"""Flower's own strategies as aggregation rules over admitted updates.

Flower's strategies take absolute arrays and some answer in another precision, while our devices
send deltas and releases move in steps of 2⁻³². This is the one place that goes between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fleet.adapt.state import CoreState
from fleet.errors import RoundError
from fleet.federate.admission import Admitted
from fleet.federate.aggregate import dequantise, quantise
from server import flower

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy

__all__ = ["aggregate"]

# Of a reply that no device sends; a strategy reads its records alone.
ANY_NODE = 1


def aggregate(
    strategy: Strategy, state: CoreState, updates: Sequence[Admitted], round_number: int = 1
) -> NDArray[np.int64]:
    """Return what a strategy of Flower's makes of a round, as the mean that a release moves by.

    Args:
        strategy: One whose ``aggregate_train`` needs no more than replies: FedAvg, FedMedian,
            FedTrimmedAvg, Krum, MultiKrum, Bulyan. Those that step from the arrays which they sent
            themselves (FedAvgM, FedAdam, …) need their own loop.
        state: Core state of the release that was trained from.
        updates: Admitted; at least one.
        round_number: From 1.

    Returns:
        Steps of 2⁻³², int64 ``(size,)``, for :func:`fleet.federate.releases.next_release`.

    Raises:
        RoundError: ``strategy`` when it returns no arrays of this layout, or fails.
        MismatchError: ``entry-too-large`` or ``not-finite`` when what it returns cannot be kept.
    """
    flower.become_task()
    before = state.flat().astype(np.float64)
    replies = [_reply(state, before + dequantise(each.steps), each.weight) for each in updates]
    name = type(strategy).__name__
    try:
        arrays, _ = strategy.aggregate_train(round_number, replies)
    except Exception as error:  # each strategy raises what it likes
        raise RoundError("strategy", f"{name} failed: {error}") from error
    if arrays is None or set(arrays) != set(state.layout.names):
        raise RoundError("strategy", f"{name} made no core state of {len(updates)} update(s)")
    after = [arrays[each].numpy().astype(np.float64).ravel() for each in state.layout.names]
    return quantise(np.concatenate(after) - before)


def _reply(state: CoreState, flat: NDArray[np.float64], weight: int) -> Message:
    """Make a device's reply as a strategy expects it: absolute arrays, and its windows."""
    cores = CoreState.from_flat(state.layout, flat).arrays
    records = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(core) for name, core in cores.items()}),
            "metrics": MetricRecord({"num-examples": weight}),
        }
    )
    asked = Message(RecordDict(), dst_node_id=ANY_NODE, message_type="train")
    return Message(records, reply_to=asked)
