"""Cut off after any commit and started again, the service ends where it would have ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import Message

from fleet.federate.admission import Reason
from fleet.federate.rule import read_rule
from server.registry import Registry
from server.registry.records import RoundState
from simulations.inprocess import InProcessGrid
from tests.server.registry.filled import OPERATOR
from tests.server.standing.standing import Fleet


class Cut(Exception):
    """The service ends here, as by SIGKILL."""


def cut_after(registry: Registry, commits: int) -> Callable[[], bool]:
    """Let the registry raise after its n-th commit from now; tell whether it did."""
    left, change = [commits], registry.database.change

    def counted(work: Any) -> Any:
        result = change(work)
        left[0] -= 1
        if left[0] == 0:
            raise Cut
        return result

    registry.database.change = counted  # type: ignore[method-assign]
    return lambda: left[0] <= 0


def whole(registry: Registry) -> None:
    """Let the registry be as it was."""
    del registry.database.__dict__["change"]


def undisturbed(fleet: Fleet, rule: str = "mean") -> list[str]:
    fleet.devices.fast = True
    fleet.policy(rounds=2, rule=rule)
    digests = fleet.released(2)
    fleet.run(lambda: set(fleet.devices.serves.values()) == {2})
    return digests


def check_once(registry: Registry) -> None:
    verbs = [(row.verb, row.detail.get("device")) for row in registry.audit.rows()]
    counted = [each for each in verbs if each[0] == "update.accept"]
    for device in {each[1] for each in counted}:
        assert counted.count(("update.accept", device)) == 2  # once a round
    assert [row.attempt for row in registry.rounds.all()] == [1, 1]
    assert [row.verb for row in registry.audit.rows()].count("round.open") == 2
    registry.audit.verify()


@pytest.mark.parametrize(
    ("every", "rule"),
    [
        (8, "adam:0.05"),
        pytest.param(1, "mean", marks=pytest.mark.faults),
        pytest.param(1, "momentum:0.9", marks=pytest.mark.faults),
    ],
)
def test_a_service_that_is_cut_off_after_any_commit_ends_in_the_same_releases(
    make: Callable[[int], Any], every: int, rule: str
) -> None:
    spec = read_rule(rule)
    with make(0) as fleet:
        wanted = undisturbed(fleet, rule)
        moments = [fleet.registry.releases.memory(number, spec).digest for number in (1, 2)]
        plans = [row.plan.id for row in fleet.registry.rounds.all()]
    commits, cuts = 1 - every, 0
    while True:
        commits += every
        with make(commits) as fleet:
            fleet.devices.fast = True
            fleet.policy(rounds=2, rule=rule)
            was_cut = cut_after(fleet.registry, commits)
            try:
                fleet.released(2)
                fleet.run(lambda fleet=fleet: set(fleet.devices.serves.values()) == {2})
            except Cut:
                cuts += 1
            over = not was_cut()
            whole(fleet.registry)
            fleet.start()
            assert fleet.released(2) == wanted, commits
            kept = [fleet.registry.releases.memory(number, spec) for number in (1, 2)]
            assert [memory.digest for memory in kept] == moments
            assert [memory.steps for memory in kept] == [spec.remembers, 2 * spec.remembers]
            fleet.run(lambda fleet=fleet: set(fleet.devices.serves.values()) == {2})
            assert [row.plan.id for row in fleet.registry.rounds.all()] == plans
            check_once(fleet.registry)
        if over:
            break
    assert cuts * every >= 15  # opened, pushed, three updates, released, told: twice


def test_a_resumed_round_asks_only_those_who_have_not_answered(
    make: Callable[[int], Any],
) -> None:
    with make(1) as fleet:
        fleet.devices.fast = True
        fleet.policy(rounds=1)
        names = fleet.devices.names
        cut_at_update(fleet.registry, 2)
        with pytest.raises(Cut):
            fleet.released(1)
        whole(fleet.registry)
        answered = {each.device for each in fleet.registry.rounds.updates(1)}
        assert len(answered) == 2
        fleet.devices.trained.clear()
        fleet.start()
        fleet.released(1)
        (left,) = set(names) - answered
        assert [device for device, _ in fleet.devices.trained] == [left]
        row = fleet.registry.rounds.get(1)
        assert {plan for _, plan in fleet.devices.trained} == {row.plan.id}


def cut_at_update(registry: Registry, updates: int) -> None:
    """Let the registry raise once so many updates are kept."""
    change = registry.database.change

    def counted(work: Any) -> Any:
        result = change(work)
        found = registry.open_round()
        if found is not None and len(found.updates) == updates:
            raise Cut
        return result

    registry.database.change = counted  # type: ignore[method-assign]


def test_a_round_whose_deadline_passed_while_nobody_served_is_closed_at_once(
    make: Callable[[int], Any],
) -> None:
    with make(1) as fleet:
        fleet.devices.fast = True
        fleet.policy(rounds=1, quorum=2, deadline_s=50.0)
        cut_at_update(fleet.registry, 2)
        with pytest.raises(Cut):
            fleet.released(1)
        whole(fleet.registry)
        fleet.grid.wait(100.0)
        fleet.devices.trained.clear()
        fleet.start()
        fleet.released(1)
        assert fleet.devices.trained == []
        (refusal,) = fleet.registry.rounds.refusals(1)
        assert refusal.reason is Reason.no_reply


def test_a_clock_that_was_set_back_cannot_hold_a_round_open_for_long(
    make: Callable[[int], Any],
) -> None:
    with make(1) as fleet:
        fleet.devices.fast = True
        fleet.policy(rounds=1, quorum=2, deadline_s=50.0)
        cut_at_update(fleet.registry, 2)
        with pytest.raises(Cut):
            fleet.released(1)
        whole(fleet.registry)
        fleet.offline.update({0, 1, 2})
        fleet.start(clock=lambda: 1000.0)
        began = fleet.grid.clock()
        fleet.run(lambda: fleet.registry.rounds.get(1).state is RoundState.released)
        assert fleet.grid.clock() - began <= 60.0


def test_orders_that_were_taken_are_settled_by_the_next_service(
    make: Callable[[int], Any],
) -> None:
    for number, commits in enumerate((1, 3, 4, 6)):
        with make(number) as fleet:
            fleet.devices.fast = True
            fleet.policy(every_s=0.0)
            fleet.steps(1)
            order = fleet.registry.orders.place("start_round", actor=OPERATOR)
            cut_after(fleet.registry, commits)
            with pytest.raises(Cut):
                fleet.steps(3)
            whole(fleet.registry)
            fleet.start()
            fleet.released(1)
            fleet.steps(2)
            done = fleet.registry.orders.get(order.id)
            assert (done.state.value, done.result["round"]) == ("done", 1)
            assert len(fleet.registry.rounds.all()) == 1


class Doubling(InProcessGrid):
    """A grid that hands every update over twice."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = super().pull_messages(message_ids)
        return [each for one in found for each in (one, one)]


def test_a_duplicate_answer_is_recorded_and_counted_once(make: Callable[[int], Any]) -> None:
    with make(1) as fleet:
        fleet.devices.fast = True
        fleet.policy(rounds=1)
        doubled = (fleet.start(Doubling), fleet.released(1))[1]
        refusals = fleet.registry.rounds.refusals(1)
        assert {each.reason for each in refusals} == {Reason.duplicate}
        assert len(refusals) == 2  # the last answer closes the round
        assert len(fleet.registry.rounds.updates(1)) == 3
    with make(2) as other:
        assert undisturbed(other)[1] == doubled[1]


def test_an_evaluation_that_was_cut_off_is_done_by_the_next_service(
    make: Callable[[int], Any],
) -> None:
    with make(1) as fleet:
        fleet.devices.fast = True
        fleet.policy(rounds=1)
        fleet.released(1)
        order = fleet.registry.orders.place("evaluate", {"release": 1}, actor=OPERATOR)
        cut_after(fleet.registry, 1)  # taken, and no more
        with pytest.raises(Cut):
            fleet.steps(3)
        whole(fleet.registry)
        assert fleet.registry.orders.get(order.id).state.value == "taken"
        fleet.start()
        fleet.steps(1)
        assert fleet.registry.orders.get(order.id).result["devices"] == 3
