"""Two services on one registry: one serves, the other says who does; nobody writes twice."""

from __future__ import annotations

import pytest

from fleet.errors import StorageError
from server.registry import Registry, open_registry
from server.registry.lease import LEASE_S, Holder
from tests.server.registry.filled import OPERATOR
from tests.server.standing.standing import Fleet

OTHER = Holder(host="cellar", place="another boot", pid=8, ticks=1)


def alive(holder: Holder, silent_s: float) -> bool:
    return False


def test_a_second_service_asks_nobody_and_opens_nothing(quick: Fleet) -> None:
    quick.policy(rounds=0, every_s=1000.0)
    quick.released(1)
    first, quick.devices.asked[:] = quick.service, []
    second = quick.start(holder=OTHER, gone=alive)
    with pytest.raises(StorageError, match="is served by process 7 on lab since") as caught:
        second.run(lambda: False)
    assert caught.value.code == "registry-served"
    assert quick.devices.asked == []
    first.step()  # it goes on undisturbed
    held = quick.registry.lease.get()
    assert held is not None
    assert (held.epoch, held.holder.host) == (1, "lab")


def test_a_service_that_ends_gives_the_lease_back(quick: Fleet) -> None:
    looks = iter([False, True])
    quick.service.run(lambda: next(looks))
    quick.start(holder=OTHER, gone=alive).step()
    assert [each["epoch"] for each in quick.events("service.leads")] == [1, 2]


def test_a_service_that_fails_gives_the_lease_back_too(quick: Fleet) -> None:
    quick.policy(rounds=1)

    def fail(event: str, /, **values: object) -> None:
        if event == "round.opened":
            raise OSError("standard output is gone")

    quick.start(say=fail)
    with pytest.raises(OSError, match="standard output"):
        quick.service.run(lambda: False)
    quick.start(holder=OTHER, gone=alive)
    quick.released(1)
    assert [row.attempt for row in quick.registry.rounds.all()] == [1]


def test_one_that_was_killed_is_followed_at_once_and_one_elsewhere_after_its_lease(
    quick: Fleet,
) -> None:
    quick.service.step()
    quick.start(holder=OTHER)  # known to be dead
    quick.service.step()
    quick.start(gone=alive)
    with pytest.raises(StorageError):
        quick.service.step()
    quick.grid.wait(LEASE_S)
    quick.service.step()
    assert [each["epoch"] for each in quick.events("service.leads")] == [1, 2, 3]


def test_one_that_lost_its_lease_in_a_round_stops_and_the_other_ends_in_the_same_release(
    quick: Fleet,
) -> None:
    quick.policy(rounds=1)
    grid, first = quick.grid, quick.service

    def overtaken(registry: Registry) -> int:
        found = registry.open_round()
        return 0 if found is None else len(found.updates)

    change = quick.registry.database.change

    def change_until_two_updates(work: object) -> object:
        result = change(work)  # type: ignore[arg-type]
        if overtaken(quick.registry) == 2:
            del quick.registry.database.__dict__["change"]
            path = quick.registry.database.path
            assert path is not None
            with open_registry(path, clock=quick.clock) as other:
                other.for_service().lease.take(OTHER, lambda holder, silent_s: True)
        return result

    quick.registry.database.change = change_until_two_updates  # type: ignore[method-assign, assignment]
    with pytest.raises(StorageError) as caught:
        first.run(lambda: False)
    assert caught.value.code == "lease-lost"
    assert overtaken(quick.registry) == 2
    assert quick.grid is grid
    quick.start(holder=OTHER)
    digest = quick.released(1)[1]
    assert len(quick.registry.rounds.updates(1)) == 3
    assert quick.registry.replay(1).release.digest == digest
    verbs = [row.verb for row in quick.registry.audit.rows()]
    assert (verbs.count("update.accept"), verbs.count("round.release")) == (3, 1)
    quick.registry.audit.verify()


def test_operators_work_while_a_service_holds_the_registry(quick: Fleet) -> None:
    quick.service.step()
    quick.registry.devices.quarantine(quick.devices.names[0], why="drifts", actor=OPERATOR)
    quick.service.step()
    assert quick.service.roster.barred == {quick.devices.names[0]: "quarantined"}
