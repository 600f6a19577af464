"""Cut off anywhere in a rebase and started again, there is one release and one answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.server.registry.filled import OPERATOR
from tests.server.standing.standing import Fleet
from tests.server.standing.test_resume import Cut, cut_after, whole
from tests.server.standing.two_bases import Lacking, ordered, second


def learned(fleet: Fleet) -> Fleet:
    fleet.devices.fast = True
    fleet.policy(rounds=1)
    fleet.released(1)
    fleet.run(lambda: set(fleet.devices.serves.values()) == {1})
    return fleet


def carried_out(fleet: Fleet, order: int) -> None:
    names = fleet.devices.names
    fleet.run(lambda: fleet.registry.orders.get(order).finished is not None)
    fleet.run(lambda: [fleet.devices.serves.get(d) for d in names] == [2] * 3)


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.faults)])
def test_a_rebase_that_is_cut_off_after_any_commit_makes_one_release_that_all_serve(
    make: Callable[[int], Any], every: int
) -> None:
    wanted, commits, cuts = "", 2 - every, 0
    while True:
        commits = max(1, commits + every)
        with make(commits) as fleet:
            lacking = Lacking(learned(fleet))
            order = ordered(fleet, second(fleet)).id
            was_cut = cut_after(fleet.registry, commits)
            try:
                carried_out(fleet, order)
            except Cut:
                cuts += 1
            over = not was_cut()
            whole(fleet.registry)
            fleet.start()
            carried_out(fleet, order)
            rows = fleet.registry.releases.all()
            wanted = wanted or rows[2].digest
            assert [row.number for row in rows] == [0, 1, 2], commits
            assert rows[2].digest == wanted
            done = fleet.registry.orders.get(order)
            assert (done.state.value, done.result["release"], done.result["promoted"]) == (
                "done",
                2,
                True,
            )
            verbs = [row.verb for row in fleet.registry.audit.rows()]
            assert verbs.count("release.add") == 2  # the base itself, and this one
            assert verbs.count("release.promote") == 2
            fleet.registry.audit.verify()
            assert all(len(each) == 2 for each in lacking.holds.values())
        if over:
            break
    # Taken, made, promoted, finished; then each device declines, is sent the base, and serves.
    assert cuts * every >= 12


def test_a_rollback_between_a_promotion_and_the_end_of_its_order_stands(
    make: Callable[[int], Any],
) -> None:
    with make(1) as fleet:
        learned(fleet)
        order = ordered(fleet, second(fleet)).id
        fleet.service.desk.clear = lambda: None  # type: ignore[method-assign]
        fleet.steps(1)
        taken = fleet.registry.orders.take(order, actor="service")
        fleet.service.desk.rebase(taken)
        assert fleet.registry.releases.current().number == 2
        fleet.registry.releases.promote(1, why="worse", actor=OPERATOR)
        fleet.start()
        fleet.run(lambda: fleet.registry.orders.get(order).finished is not None)
        assert fleet.registry.releases.current().number == 1
        assert len(fleet.registry.releases.all()) == 3
        assert fleet.registry.orders.get(order).result["promoted"] is True


def test_a_promotion_between_the_release_and_its_own_stands(make: Callable[[int], Any]) -> None:
    with make(1) as fleet:
        learned(fleet)
        order = ordered(fleet, second(fleet)).id
        add = fleet.registry.releases.add
        service = fleet.service.registry.releases

        def cut(*args: Any, **values: Any) -> Any:
            add(*args, **values)
            raise Cut

        service.add = cut
        with pytest.raises(Cut):
            fleet.steps(2)
        del service.__dict__["add"]
        fleet.registry.releases.promote(0, why="worse", actor=OPERATOR)
        fleet.start()
        fleet.run(lambda: fleet.registry.orders.get(order).finished is not None)
        done = fleet.registry.orders.get(order)
        assert (done.result["release"], done.result["promoted"]) == (2, False)
        assert fleet.registry.releases.current().number == 0
