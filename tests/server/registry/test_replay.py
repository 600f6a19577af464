from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from fleet.errors import InputError, RoundError, StorageError
from fleet.federate.releases import next_release
from fleet.federate.rule import read_rule
from server import coordinator as c
from server.registry import Registry, tables
from server.registry.replay import readmitted
from server.rules import NOTHING, rule_of
from tests.server.coordinating import START, answer, make_rules, make_task, opened, take
from tests.server.registry import filled as f
from tests.server.registry.filled import COORDINATOR, DEVICES, RULE, filled, run_round

PEOPLE = ("person-01", "person-02", "person-03", "person-04")


def coordinated(registry: Registry) -> c.Publish:
    """Run a round by the coordinator, keeping in the registry what it decides."""
    filled(registry, PEOPLE)
    state = opened()
    assert state.plan is not None
    registry.rounds.open(state.plan, state.selected, rule=RULE, actor=COORDINATOR)
    effects: tuple[c.Effect, ...] = ()
    for device in PEOPLE:
        event = answer(state, device)
        before = state.plan
        state, effects = take(state, event)
        registry.rounds.accept(1, state.accepted[device], event.payload, actor=COORDINATOR)
        assert before is not None
    (publish,) = effects
    assert isinstance(publish, c.Publish)
    assert publish.release is not None
    registry.rounds.release(1, publish.release, actor=COORDINATOR)
    return publish


def test_a_replay_ends_in_the_digest_of_the_coordinator(empty: Registry) -> None:
    publish = coordinated(empty)
    assert publish.release is not None
    replayed = empty.replay(1)
    assert replayed.same
    assert replayed.release.digest == publish.release.digest == empty.releases.get(1).digest
    assert replayed.devices == PEOPLE


def test_a_replay_without_a_device_is_the_round_that_never_heard_it(empty: Registry) -> None:
    coordinated(empty)
    head = empty.audit.head()
    replayed = empty.replay(1, without=["person-02"])
    others = tuple(device for device in PEOPLE if device != "person-02")
    state, (push,) = c.step(c.begin(make_rules(), make_task(), START), c.Fleet(0.0, others))
    assert isinstance(push, c.Push)
    state, _ = c.step(state, c.Pushed(0.0))
    _, (publish,) = take(state, *(answer(state, device) for device in others))
    assert isinstance(publish, c.Publish)
    assert publish.release is not None
    assert not replayed.same
    assert replayed.release.digest == publish.release.digest
    assert empty.audit.head() == head
    assert empty.replay(1).same


def test_a_replay_by_another_rule_gives_another_digest(registry: Registry) -> None:
    run_round(registry)
    replayed = registry.replay(1, rule="clip:0.5")
    assert not replayed.same
    assert (replayed.release.number, replayed.rule) == (1, "clip:0.5")
    assert replayed.release.provenance["rule"]["clipped"] == list(DEVICES)
    assert registry.releases.next_number() == 2
    assert registry.replay(1).rule == "mean"


def test_a_replay_by_a_rule_of_flowers_is_that_rule_of_the_stored_updates(
    registry: Registry,
) -> None:
    run_round(registry)
    deltas = np.stack([each.payload.array for each in registry.rounds.updates(1)])
    replayed = registry.replay(1, rule="median")
    np.testing.assert_allclose(replayed.release.state.flat(), np.median(deltas, axis=0), atol=1e-6)
    assert replayed.release.provenance["rule"] == {"name": "median"}


def test_the_rule_in_the_rounds_record_is_the_replays(registry: Registry) -> None:
    plan = f.plan_from(f.FIRST, 1)
    spec = read_rule("clip:0.5")
    rule = {**spec.record, "spelt": spec.text}
    registry.rounds.open(plan, DEVICES, rule=rule, actor=COORDINATOR)
    updates = {device: f.answer(plan, device) for device in DEVICES}
    for admitted, payload in updates.values():
        registry.rounds.accept(1, admitted, payload, actor=COORDINATOR)
    closed = rule_of(spec).close(f.FIRST, {d: each[0] for d, each in updates.items()}, NOTHING)
    release = next_release(f.FIRST, closed.mean, {"round": 1})
    registry.rounds.release(1, release, actor=COORDINATOR)
    assert registry.replay(1).same
    assert registry.replay(1).rule == "clip:0.5"
    assert not registry.replay(1, rule="mean").same


def test_a_rule_that_is_none_or_needs_more_updates_is_said(registry: Registry) -> None:
    run_round(registry)
    with pytest.raises(InputError) as unknown:
        registry.replay(1, rule="mode")
    assert unknown.value.code == "rule"
    with pytest.raises(RoundError, match="needs 5 update") as caught:
        registry.replay(1, rule="krum:1")
    assert caught.value.code == "too-few-updates"


def test_every_round_of_a_line_is_replayed_also_after_a_rollback(registry: Registry) -> None:
    first = run_round(registry)
    run_round(registry, first, 2)
    registry.releases.promote(1, actor=COORDINATOR)
    run_round(registry, first, 3)
    assert [registry.replay(number).same for number in (1, 2, 3)] == [True] * 3


def test_what_cannot_be_replayed_is_said(registry: Registry) -> None:
    run_round(registry, devices=["ada", "bob"])
    with pytest.raises(InputError, match="cyd") as caught:
        registry.replay(1, without=["cyd"])
    assert caught.value.code == "no-such-update"
    with pytest.raises(RoundError) as caught_none:
        registry.replay(1, without=["ada", "bob"])
    assert caught_none.value.code == "too-few-updates"
    registry.rounds.open(
        registry.rounds.get(1).plan.model_copy(
            update={
                "round": 2,
                "release": 1,
                "state": registry.releases.get(1).state_digest,
            }
        ),
        DEVICES,
        rule=RULE,
        actor=COORDINATOR,
    )
    with pytest.raises(RoundError, match="open") as caught_round:
        registry.replay(2)
    assert caught_round.value.code == "no-release"


@pytest.mark.parametrize("column", ["payload", "header", "weight"])
def test_a_stored_update_that_changed_is_found(registry: Registry, column: str) -> None:
    run_round(registry)
    other = {row.device: row for row in registry.rounds.updates(1)}["bob"]
    table = tables.updates
    values = {
        "payload": b"no array",
        "header": "{",
        "weight": other.weight + 1,
    }
    registry.database.change(
        lambda connection: connection.execute(
            update(table).where(table.c.device == "bob").values({column: values[column]})
        )
    )
    with pytest.raises(StorageError) as caught:
        registry.replay(1)
    assert caught.value.code == "update-damaged"


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.permutations(DEVICES * 2), cut=st.integers(0, 6))
def test_order_duplicates_and_restarts_do_not_change_what_a_round_comes_to(
    registry: Registry,
    open_again: Callable[[], Registry],
    order: Sequence[str],
    cut: int,
) -> None:
    number = len(registry.rounds.all()) + 1
    plan = f.opened(registry, f.FIRST, number)
    for position, device in enumerate(order):
        where = open_again() if position == cut else registry
        where.rounds.accept(number, *f.answer(plan, device), actor=COORDINATOR)
    found = registry.open_round()
    assert found is not None
    assert found.unanswered == ()
    layout = registry.releases.load(0).state.layout
    resumed = [readmitted(each, found.row, layout) for each in found.updates]
    free = registry.releases.next_number()
    undisturbed = [f.answer(plan, device)[0] for device in DEVICES]
    release = f.aggregate(f.FIRST, plan, resumed, free)
    assert release.digest == f.aggregate(f.FIRST, plan, undisturbed, free).digest
    registry.rounds.release(number, release, actor=COORDINATOR)
    assert registry.replay(number).same
