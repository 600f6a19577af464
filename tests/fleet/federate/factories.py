"""Small records and payloads that the federation's tests are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.base import Base, BaseRecord
from fleet.adapt.state import CoreState, Layout
from fleet.federate.records import WIRE_FORMAT, Plan, UpdateHeader
from fleet.federate.wire import Payload, Update, encode_update
from fleet.models.config import ModelConfig

LAYOUT = Layout.of({"conv1.core": (2, 2), "conv2.core": (3, 1)})
DEVICE = "person-07"


def make_plan(**changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "round": 1,
        "base": "a" * 64,
        "frame": "b" * 64,
        "layout": LAYOUT.digest,
        "release": 0,
        "state": CoreState.zero(LAYOUT).digest,
        "method": "core",
        "rank": 2,
        "epochs": 1,
        "batch": 32,
        "optimiser": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "seed": 0,
        "weight_cap": 4096,
        "deadline_s": 600.0,
    }
    return Plan(**{**fields, **changes})


def make_header(plan: Plan, /, **changes: Any) -> UpdateHeader:
    fields: dict[str, Any] = {
        "format": WIRE_FORMAT,
        "plan": plan.id,
        "device": DEVICE,
        "base": plan.base,
        "frame": plan.frame,
        "layout": plan.layout,
        "examples": 10,
        "steps": 1,
        "loss": 0.5,
    }
    return UpdateHeader(**{**fields, **changes})


def make_payload(plan: Plan, flat: NDArray[Any] | None = None, /, **changes: Any) -> Payload:
    """Pack an honest update; ``changes`` go into the config as they are."""
    flat = np.arange(LAYOUT.size, dtype=np.float32) / 8 if flat is None else flat
    update = Update(make_header(plan), CoreState.zero(LAYOUT))
    return Payload(flat, {**encode_update(update).config, **changes})


def make_base(rank: int = 2, fill: float = 0.0) -> Base:
    """Make a base that only has an identity: one array, no frames."""
    record = BaseRecord(
        model=ModelConfig(name="small-cnn", channels=1, classes=2, window=128),
        labels=("walk", "sit"),
        channels=(("acc_x", "m/s^2"),),
        rate_hz=50.0,
        window=128,
        stride=64,
        mean=(0.0,),
        std=(1.0,),
        rank=rank,
    )
    return Base(record, {"weight": np.full(3, fill, np.float32)}, {})
