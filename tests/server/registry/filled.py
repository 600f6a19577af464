"""Registries with devices, releases and rounds in them."""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np

from fleet.federate.admission import Admitted, Bounds, admit
from fleet.federate.records import Plan
from fleet.federate.releases import Release, first_release, next_release
from fleet.federate.wire import Payload
from server.registry import Registry
from server.rules.exact import exact_mean
from tests.fleet.federate.factories import LAYOUT, make_base, make_payload, make_plan

BASE = make_base()
FIRST = first_release(BASE, "core", LAYOUT)
DEVICES = ("ada", "bob", "cyd")
OPERATOR = "operator"
COORDINATOR = "coordinator"
RULE = {"name": "weighted mean, int64 fixed point"}
NOW_S = 1_700_000_000.25


class Clock:
    """Time stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


def key_of(name: str) -> str:
    return f"ecdsa-sha2-nistp384 {base64.b64encode(name.encode()).decode()} {name}@lab"


def filled(registry: Registry, devices: Iterable[str] = DEVICES) -> Registry:
    """Enroll devices, install the base and make its first release the fleet's."""
    for device in devices:
        registry.devices.enroll(device, key_of(device), actor=OPERATOR)
    registry.bases.install(BASE.digest, b"the base", actor=OPERATOR)
    registry.releases.add(FIRST, actor=OPERATOR)
    registry.releases.promote(0, actor=OPERATOR)
    return registry


def plan_from(start: Release, number: int, **changes: object) -> Plan:
    fields: dict[str, object] = {
        "round": number,
        "base": start.base,
        "frame": start.frame,
        "release": start.number,
        "state": start.state.digest,
    }
    return make_plan(**{**fields, **changes})


def answer(plan: Plan, device: str, seed: int = 0) -> tuple[Admitted, Payload]:
    """Return a device's update, the same for the same plan, device and seed."""
    random = np.random.default_rng([plan.round, seed, *map(ord, device)])
    flat = random.normal(size=LAYOUT.size).astype(np.float32)
    examples = int(random.integers(1, 100))
    payload = make_payload(plan, flat, device=device, examples=examples)
    verdict = admit(payload, plan, LAYOUT, device, Bounds())
    assert isinstance(verdict, Admitted)
    return verdict, payload


def opened(registry: Registry, start: Release = FIRST, number: int = 1) -> Plan:
    plan = plan_from(start, number)
    registry.rounds.open(plan, DEVICES, rule=RULE, actor=COORDINATOR)
    return plan


def aggregate(start: Release, plan: Plan, updates: Iterable[Admitted], number: int = 0) -> Release:
    provenance = {"round": plan.round, "plan": plan.id}
    mean = exact_mean({each.header.device: each for each in updates}, LAYOUT.size)
    return next_release(start, mean, provenance, number=number)


def run_round(
    registry: Registry, start: Release = FIRST, number: int = 1, devices: Iterable[str] = DEVICES
) -> Release:
    """Run a whole round in which ``devices`` answer; return its release."""
    plan = opened(registry, start, number)
    updates = [answer(plan, device) for device in devices]
    for admitted, payload in updates:
        assert registry.rounds.accept(number, admitted, payload, actor=COORDINATOR)
    free = registry.releases.next_number()
    release = aggregate(start, plan, [admitted for admitted, _ in updates], free)
    registry.rounds.release(number, release, actor=COORDINATOR)
    return release
