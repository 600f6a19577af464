"""Flower's side of a device: hands each message to the learner and its answer back.

A node whose config names an ``agent-socket`` has its learner in another process, the agent, and
asks it over the link; in simulation the learner runs here. No torch is imported until a learner is
asked for here, and no gRPC until an agent is. A learner that declines answers with the reason, so
that the server records it; whatever fails otherwise becomes Flower's error reply.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.link.records import Answer, Declined, Metrics, Request
from fleet.errors import InputError, MismatchError, RoundError
from fleet.federate.npy import to_npy
from fleet.federate.records import WIRE_FORMAT
from fleet.federate.wire import Payload, Scalar

if TYPE_CHECKING:
    from clients.agent.learner import Learner

__all__ = [
    "AGENT_SOCKET",
    "LONGEST_CALL_S",
    "RESERVE_S",
    "SHORTEST_CALL_S",
    "app",
    "call_limit",
    "declined_content",
    "metrics_content",
    "status_content",
    "update_content",
]

# Key of a node's config: where its agent listens.
AGENT_SOCKET = "agent-socket"
# However long a message lives, nobody waits longer than this for one answer.
LONGEST_CALL_S = 2 * 3600.0
SHORTEST_CALL_S = 1.0
# Left of a message's life for its answer to travel.
RESERVE_S = 5.0

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a plan with an update."""

    def here() -> RecordDict:
        return update_content(_answer(context, message))

    return _answered(message, context, here)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer with the confusion counts of a release on the device's own test windows."""

    def here() -> RecordDict:
        return metrics_content(_learner(context).answer_evaluation(_payload(message.content)))

    return _answered(message, context, here)


@app.query("status")
def status(message: Message, context: Context) -> Message:
    """Say who the device is and whether it can take part."""
    return _answered(message, context, lambda: _status(context))


@app.query("release")
def release(message: Message, context: Context) -> Message:
    """Say what the device serves; in simulation, where none is served, its status."""
    return _answered(message, context, lambda: _status(context))


@app.query("health")
def health(message: Message, context: Context) -> Message:
    """Say how the device is: readings, disk, store; in simulation its status."""
    return _answered(message, context, lambda: _status(context))


def call_limit(created_at: float, ttl: float, now: float) -> float:
    """Return how long the agent may take over a message, in seconds.

    Args:
        created_at: When the message was made, seconds since the epoch; perhaps by another clock.
        ttl: How long it lives, seconds.
        now: Seconds since the epoch by this clock.
    """
    left = min(created_at + ttl - now, ttl, LONGEST_CALL_S + RESERVE_S) - RESERVE_S
    return max(left, SHORTEST_CALL_S)


def update_content(payload: Payload) -> RecordDict:
    """Return the records of an update; they share nothing that can change with ``payload``."""
    flat = payload.array
    packed = Array(str(flat.dtype), flat.shape, "numpy.ndarray", to_npy(flat))
    return RecordDict(
        {
            "arrays": ArrayRecord({"packed": packed}),
            "config": ConfigRecord(dict(payload.config)),
        }
    )


def metrics_content(metrics: Mapping[str, int | float | list[int]]) -> RecordDict:
    """Return the records of an evaluation."""
    return RecordDict({"metrics": MetricRecord(dict(metrics))})


def status_content(record: Mapping[str, Scalar]) -> RecordDict:
    """Return the records of a device's status."""
    return RecordDict({"config": ConfigRecord(dict(record))})


def declined_content(error: InputError | RoundError) -> RecordDict:
    """Return the records by which a device declines, with the reason."""
    return _declined(Declined.because(error))


def _declined(reason: Declined) -> RecordDict:
    config: Mapping[str, Scalar] = {
        "format": WIRE_FORMAT,
        "declined": reason.code,
        "detail": reason.detail,
    }
    return RecordDict({"config": ConfigRecord(dict(config))})


def _answered(message: Message, context: Context, here: Callable[[], RecordDict]) -> Message:
    """Return the reply: the agent's, or in simulation what ``here`` makes of the message."""
    socket = context.node_config.get(AGENT_SOCKET)
    try:
        content = _content(_asked(message, Path(str(socket)))) if socket else here()
    except (InputError, RoundError) as error:
        content = declined_content(error)
    return Message(content, reply_to=message)


def _asked(message: Message, socket: Path) -> Answer:
    from clients.link.caller import ask

    about = message.metadata
    # A query carries nothing; a plan or a release always has its config.
    bare = not message.content and about.message_type.startswith("query.")
    payload = Payload(np.zeros(0, np.float32), {}) if bare else _payload(message.content)
    limit_s = call_limit(about.created_at, about.ttl, time.time())
    return ask(socket, Request(about.message_type, payload, limit_s))


def _content(answer: Answer) -> RecordDict:
    if isinstance(answer, Declined):
        return _declined(answer)
    if isinstance(answer, Metrics):
        return metrics_content(answer.values)
    return update_content(answer) if answer.array.size else status_content(answer.config)


def _status(context: Context) -> RecordDict:
    from clients.agent.simulated import status_of

    record = status_of(context.run_config, _partition(context))
    return status_content(record.model_dump(mode="json"))


def _answer(context: Context, message: Message) -> Payload:
    from clients.agent.simulated import answer_of

    return answer_of(context.run_config, _partition(context), _payload(message.content))


def _learner(context: Context) -> Learner:
    from clients.agent.simulated import learner_of

    return learner_of(context.run_config, _partition(context))


def _partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _payload(content: RecordDict) -> Payload:
    config = content.config_records.get("config")
    if config is None:
        raise MismatchError("malformed", "a message carries one config", "Upgrade the server.")
    scalars = {k: v for k, v in config.items() if isinstance(v, (str, int, float, bytes, bool))}
    arrays = content.array_records.get("arrays")
    packed = arrays["packed"].numpy() if arrays else np.zeros(0, np.float32)
    return Payload(packed, scalars)
