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
from fleet.federate.records import WIRE_FORMAT
from fleet.federate.wire import Payload, Scalar

if TYPE_CHECKING:
    from clients.agent.learner import Learner

__all__ = ["app"]

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a plan with an update."""
    try:
        payload = _learner(context).answer_plan(_payload(message.content))
    except (InputError, RoundError) as error:
        return _declined(error.code, error.message, message)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"packed": Array(payload.array)}),
            "config": ConfigRecord(dict(payload.config)),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer with the confusion counts of a release on the device's own test windows."""
    try:
        metrics = _learner(context).answer_evaluation(_payload(message.content))
    except (InputError, RoundError) as error:
        return _declined(error.code, error.message, message)
    return Message(RecordDict({"metrics": MetricRecord(dict(metrics))}), reply_to=message)


@app.query("status")
def status(message: Message, context: Context) -> Message:
    """Say who the device is and whether it can take part."""
    try:
        record = _learner(context).status().model_dump(mode="json")
    except (InputError, RoundError) as error:
        return _declined(error.code, error.message, message)
    return Message(RecordDict({"config": ConfigRecord(record)}), reply_to=message)


def _learner(context: Context) -> Learner:
    from clients.agent.simulated import learner_of

    return learner_of(context.run_config, int(context.node_config["partition-id"]))


def _declined(code: str, detail: str, message: Message) -> Message:
    config: Mapping[str, Scalar] = {"format": WIRE_FORMAT, "declined": code, "detail": detail}
    return Message(RecordDict({"config": ConfigRecord(dict(config))}), reply_to=message)


def _payload(content: RecordDict) -> Payload:
    config = content.config_records.get("config")
    if config is None:
        raise MismatchError("malformed", "a message carries one config", "Upgrade the server.")
    scalars = {k: v for k, v in config.items() if isinstance(v, (str, int, float, bytes, bool))}
    arrays = content.array_records.get("arrays")
    packed = arrays["packed"].numpy() if arrays else np.zeros(0, np.float32)
    return Payload(packed, scalars)
