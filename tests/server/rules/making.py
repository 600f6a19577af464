"""Admitted updates, a release they were trained from, and naive rules as oracles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.state import CoreState
from fleet.federate.admission import Admitted, Bounds, admit
from fleet.federate.aggregate import dequantise
from fleet.federate.releases import Release
from fleet.federate.rule import read_rule
from server.rules import NOTHING, Closed, Memory, rule_of
from tests.fleet.federate.factories import LAYOUT, make_payload, make_plan

SIZE = LAYOUT.size
STEP = 2.0**-32
PLAN = make_plan()


def release(seed: int = 5, scale: float = 0.5) -> Release:
    """Return a release whose cores have moved."""
    flat = np.random.default_rng(seed).normal(0, scale, SIZE).astype(np.float32)
    return Release(3, "a" * 64, "b" * 64, "c" * 64, "core", CoreState.from_flat(LAYOUT, flat))


def update(device: str, delta: NDArray[Any], weight: int = 1) -> Admitted:
    """Return what admission makes of a delta."""
    payload = make_payload(PLAN, delta.astype(np.float32), device=device, examples=weight)
    admitted = admit(payload, PLAN, LAYOUT, device, Bounds())
    assert isinstance(admitted, Admitted)
    return admitted


def cohort(
    devices: int, seed: int = 7, *, liars: int = 0, factor: float = 40.0
) -> dict[str, Admitted]:
    """Return updates that nearly agree; the first ``liars`` devices send the opposite, enlarged."""
    random = np.random.default_rng(seed)
    deltas = random.normal(0.1, 0.02, (devices, SIZE))
    deltas[:liars] *= -factor
    weights = random.integers(1, 400, devices)
    return {
        f"person-{n:02d}": update(f"person-{n:02d}", delta, int(weight))
        for n, (delta, weight) in enumerate(zip(deltas, weights, strict=True))
    }


def closed(
    rule: str,
    updates: Mapping[str, Admitted],
    start: Release | None = None,
    memory: Memory = NOTHING,
) -> Closed:
    """Close a round by a rule's spelling."""
    return rule_of(read_rule(rule)).close(start or release(), updates, memory)


def moved(rule: str, updates: Mapping[str, Admitted]) -> NDArray[np.float64]:
    """Return what a release moves by, float64."""
    return dequantise(closed(rule, updates).mean)


def deltas_of(updates: Mapping[str, Admitted]) -> NDArray[np.float64]:
    """Return the deltas as admitted ``(devices, size)``, by name."""
    return np.stack([dequantise(updates[device].steps) for device in sorted(updates)])


def naive_krum(deltas: NDArray[np.float64], liars: int) -> list[int]:
    """Return devices by Krum's score, best first, straight from the paper's definition."""
    devices = len(deltas)
    scores = []
    for one in range(devices):
        others = [other for other in range(devices) if other != one]
        apart = sorted(float(np.sum((deltas[one] - deltas[o]) ** 2)) for o in others)
        scores.append(sum(apart[: devices - liars - 2]))
    return sorted(range(devices), key=scores.__getitem__)
