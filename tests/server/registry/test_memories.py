"""What a rule remembers is kept with the release that it led to, and belongs to it alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import delete, update

from fleet.errors import MismatchError, StorageError
from fleet.federate.releases import Release
from fleet.federate.rule import read_rule
from server.registry import Registry, standing_tables
from server.rules.memory import NOTHING, Memory
from tests.server.registry.filled import (
    COORDINATOR,
    DEVICES,
    FIRST,
    LAYOUT,
    aggregate,
    answer,
    opened,
    run_round,
)

ADAM = read_rule("adam:0.05")
MOMENTS = np.random.default_rng(3).normal(size=(2, LAYOUT.size))
MEMORY = Memory.of(ADAM.text, 4, {"second": MOMENTS[1], "first": MOMENTS[0]})


def remembered(registry: Registry, memory: Memory = MEMORY) -> Release:
    """Close round 1 with a release that its rule remembers."""
    plan = opened(registry)
    updates = [answer(plan, device) for device in DEVICES]
    for admitted, payload in updates:
        registry.rounds.accept(1, admitted, payload, actor=COORDINATOR)
    rule = {**ADAM.record, "memory": MEMORY.digest, "steps": MEMORY.steps}
    made = aggregate(FIRST, plan, [admitted for admitted, _ in updates])
    release = replace(made, provenance={**made.provenance, "rule": rule})
    registry.rounds.release(1, release, memory=memory, actor=COORDINATOR)
    return release


def test_moments_come_back_bit_for_bit(registry: Registry) -> None:
    remembered(registry)
    back = registry.releases.memory(1, ADAM)
    assert (back.digest, back.rule, back.steps) == (MEMORY.digest, ADAM.text, 4)
    assert back.arrays["first"].tobytes() == MOMENTS[0].tobytes()
    assert back.arrays["first"].dtype == np.float64


def test_another_rule_and_another_release_remember_nothing(registry: Registry) -> None:
    release = remembered(registry)
    for other in ("adam:0.06", "yogi:0.05", "momentum:0.9", "mean"):
        assert registry.releases.memory(1, read_rule(other)) is NOTHING
    assert registry.releases.memory(0, ADAM) is NOTHING
    run_round(registry, release, 2)  # by the mean
    assert registry.releases.memory(2, ADAM) is NOTHING
    assert registry.releases.memory(1, ADAM).digest == MEMORY.digest


def test_a_release_that_is_refused_leaves_no_moments(registry: Registry) -> None:
    plan = opened(registry)
    stranger = replace(FIRST, number=1, parent="c" * 64)
    with pytest.raises(MismatchError):
        registry.rounds.release(plan.round, stranger, memory=MEMORY, actor=COORDINATOR)
    with registry.database.read() as connection:
        kept = connection.execute(standing_tables.memories.select()).all()
    assert kept == []


@pytest.mark.parametrize(
    "change",
    [
        delete(standing_tables.memories),
        update(standing_tables.memories).values(moments=b"no tensors"),
        update(standing_tables.memories).values(steps=5),
        update(standing_tables.memories).values(rule="adam:0.06"),
    ],
    ids=["gone", "unreadable", "other steps", "other rule"],
)
def test_moments_that_are_not_what_was_kept_are_refused(registry: Registry, change: object) -> None:
    remembered(registry)
    registry.database.change(lambda connection: connection.execute(change))  # type: ignore[call-overload]
    with pytest.raises(StorageError) as caught:
        registry.releases.memory(1, ADAM)
    assert caught.value.code == "memory-damaged"


def test_a_release_that_came_from_elsewhere_brought_no_moments(registry: Registry) -> None:
    rule = {**ADAM.record, "memory": MEMORY.digest}
    brought = replace(FIRST, number=1, parent=FIRST.digest, provenance={"rule": rule})
    registry.releases.add(brought, actor=COORDINATOR)
    assert registry.releases.memory(1, ADAM) is NOTHING
