"""Flower's side of a device: hands each message to the learner and its answer back.

No torch is imported here until a learner is asked for. A learner that declines answers with the
reason, so that the server records it; whatever fails otherwise becomes Flower's error reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fleet.errors import InputError, MismatchError, RoundError
from fleet.federate.npy import to_npy
from fleet.federate.records import WIRE_FORMAT
from fleet.federate.wire import Payload, Scalar

if TYPE_CHECKING:
    from clients.agent.learner import Learner

__all__ = ["app", "declined_content", "metrics_content", "status_content", "update_content"]

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a plan with an update."""
    try:
        payload = _learner(context).answer_plan(_payload(message.content))
    except (InputError, RoundError) as error:
        return Message(declined_content(error), reply_to=message)
    return Message(update_content(payload), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer with the confusion counts of a release on the device's own test windows."""
    try:
        metrics = _learner(context).answer_evaluation(_payload(message.content))
    except (InputError, RoundError) as error:
        return Message(declined_content(error), reply_to=message)
    return Message(metrics_content(metrics), reply_to=message)


@app.query("status")
def status(message: Message, context: Context) -> Message:
    """Say who the device is and whether it can take part."""
    try:
        from clients.agent.simulated import status_of

        record = status_of(context.run_config, _partition(context)).model_dump(mode="json")
    except (InputError, RoundError) as error:
        return Message(declined_content(error), reply_to=message)
    return Message(status_content(record), reply_to=message)


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


def metrics_content(metrics: Mapping[str, int | list[int]]) -> RecordDict:
    """Return the records of an evaluation."""
    return RecordDict({"metrics": MetricRecord(dict(metrics))})


def status_content(record: Mapping[str, Scalar]) -> RecordDict:
    """Return the records of a device's status."""
    return RecordDict({"config": ConfigRecord(dict(record))})


def declined_content(error: InputError | RoundError) -> RecordDict:
    """Return the records by which a device declines, with the reason."""
    config: Mapping[str, Scalar] = {
        "format": WIRE_FORMAT,
        "declined": error.code,
        "detail": error.message,
    }
    return RecordDict({"config": ConfigRecord(dict(config))})


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
