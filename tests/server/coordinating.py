"""A coordinator with its rules, and devices that answer it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.federate.admission import Reason
from fleet.federate.releases import first_release
from server import coordinator as c
from tests.fleet.federate.factories import LAYOUT, make_base, make_payload

BASE = make_base()
DEVICES = ("person-01", "person-02", "person-03", "person-04")
START = first_release(BASE, "core", LAYOUT)


def make_task(**changes: Any) -> c.Task:
    fields: dict[str, Any] = {
        "method": "core",
        "rank": 2,
        "layout": LAYOUT,
        "optimiser": "sgd",
        "learning_rate": 0.1,
        "momentum": 0.9,
        "epochs": 1,
        "batch": 32,
        "weight_cap": 4096,
        "seed": 0,
    }
    return c.Task(**{**fields, **changes})


def make_rules(**changes: Any) -> c.Rules:
    fields: dict[str, Any] = {"rounds": 2, "deadline_s": 100.0, "wait_s": 30.0}
    return c.Rules(**{**fields, **changes})


def make_state(**rules: Any) -> c.State:
    return c.begin(make_rules(**rules), make_task(), START)


def opened(devices: tuple[str, ...] = DEVICES, now: float = 0.0, **rules: Any) -> c.State:
    """Return the state that collects answers from ``devices``."""
    state, (push,) = c.step(make_state(**rules), c.Fleet(now, devices))
    assert isinstance(push, c.Push)
    return c.step(state, c.Pushed(now))[0]


def flat_of(device: str) -> NDArray[np.float32]:
    random = np.random.default_rng(sum(map(ord, device)))
    return random.normal(size=LAYOUT.size).astype(np.float32)


def answer(state: c.State, device: str, now: float = 1.0, /, **changes: Any) -> c.Answered:
    assert state.plan is not None
    changes = {"device": device, **changes}
    return c.Answered(now, device, make_payload(state.plan, flat_of(device), **changes))


def take(state: c.State, *events: c.Event) -> c.Step:
    """Take events; return the state and the effects of all of them."""
    effects: tuple[c.Effect, ...] = ()
    for event in events:
        state, more = c.step(state, event)
        effects += more
    return state, effects


def record_of(effects: tuple[c.Effect, ...]) -> c.RoundRecord:
    (publish,) = (each for each in effects if isinstance(each, c.Publish))
    return publish.record


def reasons(record: c.RoundRecord) -> dict[str, Reason]:
    return {refusal.device: refusal.reason for refusal in record.refused}
