"""Server momentum, Adam and Yogi in the standing service: moments are as durable as releases."""

from __future__ import annotations

import pytest
from sqlalchemy import update

from fleet.errors import StorageError
from fleet.federate.rule import read_rule
from server.registry import Registry, standing_tables
from server.registry.replay import readmitted
from server.rules import NOTHING, rule_of
from tests.server.registry.filled import OPERATOR
from tests.server.running import Setting
from tests.server.standing.standing import Fleet

RULES = ("momentum:0.9", "adam:0.05", "yogi:0.05")


def expected(registry: Registry, number: int) -> tuple[str, str]:
    """Return the core state and the moments that a round comes to, from its updates alone."""
    row = registry.rounds.get(number)
    start, spec = registry.releases.load(row.plan.release), read_rule(str(row.rule["spelt"]))
    updates = registry.rounds.updates(number)
    admitted = {each.device: readmitted(each, row, start.state.layout) for each in updates}
    before = registry.releases.memory(start.number, spec) if start.number else NOTHING
    closed = rule_of(spec).close(start, admitted, before)
    moved = start.state.flat().astype("float64") + closed.mean * 2.0**-32
    made = type(start.state).from_flat(start.state.layout, moved.astype("float32"))
    return made.digest, closed.memory.digest


def test_rounds_end_in_the_release_that_a_simulation_ends_in(
    fleet: Fleet, setting: Setting
) -> None:
    rule = read_rule("adam:0.05")
    kept = setting.run(setting.grid(), rounds=2, rule=rule)
    fleet.policy(rule=rule.text)
    assert fleet.released(2)[1:] == [release.digest for release in kept.releases]
    moments = [fleet.registry.releases.memory(number, rule).digest for number in (1, 2)]
    assert moments == [record.memory.digest for record in kept.records]


@pytest.mark.parametrize("rule", RULES)
def test_each_round_goes_on_from_the_moments_before_and_is_replayed_with_them(
    quick: Fleet, rule: str
) -> None:
    quick.policy(rule=rule, rounds=3)
    quick.released(3)
    registry = quick.registry
    for number in (1, 2, 3):
        memory = registry.releases.memory(number, read_rule(rule))
        assert memory.steps == number
        state, moments = expected(registry, number)
        assert registry.releases.get(number).state_digest == state
        assert memory.digest == moments
        assert registry.replay(number).same
        assert registry.replay(number).rule == rule
    assert not registry.replay(2, rule="mean").same


def test_a_rollback_goes_on_with_the_moments_of_the_release_rolled_back_to(quick: Fleet) -> None:
    rule = read_rule("momentum:0.9")
    quick.policy(rule=rule.text)
    quick.released(2)
    quick.registry.releases.promote(1, why="worse", actor=OPERATOR)
    quick.policy(rule=rule.text, rounds=3)
    quick.released(3)
    registry = quick.registry
    assert registry.rounds.get(3).plan.release == 1
    assert registry.releases.memory(3, rule).steps == 2
    assert registry.releases.memory(3, rule).digest == expected(registry, 3)[1]
    assert registry.replay(3).same


def test_another_rule_starts_with_fresh_moments(quick: Fleet) -> None:
    registry = quick.registry
    for rounds, rule in enumerate(("adam:0.05", "adam:0.06", "mean", "adam:0.06"), 1):
        quick.policy(rule=rule, rounds=rounds)
        quick.released(rounds)
        spec = read_rule(rule)
        assert registry.releases.memory(rounds, spec).steps == int(spec.remembers)
        assert registry.replay(rounds).same


def test_an_abandoned_round_leaves_the_moments_as_they_were(quick: Fleet) -> None:
    rule = read_rule("yogi:0.05")
    quick.policy(rule=rule.text, rounds=2)
    quick.released(1)
    quick.policy(rule=rule.text, rounds=2, deadline_s=5.0)
    quick.offline.add(0)
    order = quick.registry.orders.place("abort_round", {"reason": "x"}, actor=OPERATOR)
    quick.steps(3)
    assert quick.registry.orders.get(order.id).error == "no round is open"
    quick.offline.clear()
    quick.released(2)
    assert quick.registry.releases.memory(2, rule).steps == 2
    assert quick.registry.replay(2).same


def test_a_service_whose_moments_were_changed_does_not_go_on_without_them(quick: Fleet) -> None:
    quick.policy(rule="adam:0.05", rounds=1)
    quick.released(1)
    kept = standing_tables.memories
    change = update(kept).values(steps=7)
    quick.registry.database.change(lambda connection: connection.execute(change))
    quick.policy(rule="adam:0.05", rounds=2)
    with pytest.raises(StorageError) as caught:
        quick.released(2)
    assert caught.value.code == "memory-damaged"
    assert quick.registry.open_round() is None
