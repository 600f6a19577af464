from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Connection, select

from fleet.errors import FleetError, InputError, RoundError, StorageError
from fleet.federate.releases import Release
from server.registry import Registry, database, ledger, open_registry, tables
from server.registry.ledger import KEY_LIFETIME_S
from tests.server.registry.filled import (
    COORDINATOR,
    DEVICES,
    FIRST,
    OPERATOR,
    RULE,
    Clock,
    aggregate,
    answer,
    key_of,
    opened,
    plan_from,
    run_round,
)
from tests.server.registry.postgres import Postgres


def test_a_repeated_request_gets_its_first_result_and_changes_nothing(registry: Registry) -> None:
    first = registry.devices.quarantine("ada", why="drifts", actor=OPERATOR, key="k1")
    registry.devices.readmit("ada", why="fine", actor=OPERATOR)
    head = registry.audit.head()
    again = registry.devices.quarantine("ada", why="drifts", actor=OPERATOR, key="k1")
    assert again == first
    assert registry.devices.get("ada").quarantined is None
    assert registry.audit.head() == head


def test_a_request_that_changed_nothing_does_not_change_anything_later(registry: Registry) -> None:
    registry.releases.promote(0, actor=OPERATOR, key="k1")
    run_round(registry)
    assert registry.releases.promote(0, actor=OPERATOR, key="k1").number == 0
    current = registry.releases.current()
    assert current is not None
    assert current.number == 1


def test_every_kind_of_result_is_remembered(registry: Registry) -> None:
    plan = plan_from(FIRST, 1)
    update = answer(plan, "ada")
    made = aggregate(FIRST, plan, [update[0]])

    def all_of_it() -> list[object]:
        rounds = registry.rounds
        return [
            rounds.open(plan, DEVICES, rule=RULE, actor=COORDINATOR, key="open"),
            rounds.accept(1, *update, actor=COORDINATOR, key="accept"),
            rounds.release(1, made, actor=COORDINATOR, key="release"),
            registry.releases.promote(0, actor=OPERATOR, key="promote"),
            registry.bases.install("f" * 64, b"x", actor=OPERATOR, key="install"),
        ]

    first, head = all_of_it(), registry.audit.head()
    assert first[1] is True
    assert all_of_it() == first
    assert registry.audit.head() == head


def test_a_key_is_for_one_request_of_one_actor(registry: Registry) -> None:
    registry.devices.quarantine("ada", why="drifts", actor=OPERATOR, key="k1")
    for ask in (
        lambda: registry.devices.quarantine("bob", why="drifts", actor=OPERATOR, key="k1"),
        lambda: registry.devices.quarantine("ada", why="other", actor=OPERATOR, key="k1"),
        lambda: registry.devices.quarantine("ada", why="drifts", actor="else", key="k1"),
        lambda: registry.devices.readmit("ada", why="drifts", actor=OPERATOR, key="k1"),
    ):
        with pytest.raises(InputError) as caught:
            ask()
        assert caught.value.code == "key-reused"


def test_a_key_is_forgotten_after_its_time(registry: Registry, clock: Clock) -> None:
    registry.devices.quarantine("ada", why="drifts", actor=OPERATOR, key="k1")
    clock.now_s += KEY_LIFETIME_S - 1
    with pytest.raises(InputError):
        registry.devices.revoke("ada", why="lost", actor=OPERATOR, key="k1")
    clock.now_s += 1
    registry.devices.revoke("ada", why="lost", actor=OPERATOR, key="k1")
    with registry.database.read() as connection:
        assert len(connection.execute(select(tables.requests)).all()) == 1


def test_a_request_that_failed_may_be_repeated(registry: Registry) -> None:
    with pytest.raises(InputError):
        registry.devices.pin("ada", 1, actor=OPERATOR, key="k1")
    run_round(registry)
    assert registry.devices.pin("ada", 1, actor=OPERATOR, key="k1").pinned == 1


def test_a_change_whose_audit_row_cannot_be_kept_is_not_made(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no row")

    monkeypatch.setattr(ledger, "append", fails)
    with pytest.raises(RuntimeError):
        registry.devices.revoke("ada", why="lost", actor=OPERATOR, key="k1")
    monkeypatch.undo()
    assert registry.devices.get("ada").revoked is None
    registry.devices.readmit("ada", why="", actor=OPERATOR, key="k1")


def both(*work: Callable[[], object]) -> list[FleetError | None]:
    """Run each in a thread of its own, at the same time; return their errors."""
    errors: list[FleetError | None] = [None] * len(work)
    line = threading.Barrier(len(work), timeout=30)

    def run(place: int) -> None:
        line.wait()
        try:
            work[place]()
        except FleetError as error:
            errors[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return errors


def test_of_two_who_open_a_round_one_does(
    registry: Registry, open_again: Callable[[], Registry]
) -> None:
    other = open_again()
    errors = both(lambda: opened(registry), lambda: opened(other))
    (error,) = [each for each in errors if each]
    assert isinstance(error, RoundError)
    assert error.code == "round-open"
    assert len(registry.rounds.all()) == 1


def test_of_two_who_take_a_number_one_does(
    registry: Registry, open_again: Callable[[], Registry]
) -> None:
    other = open_again()
    plan = plan_from(FIRST, 1)
    made = [aggregate(FIRST, plan, [answer(plan, device)[0]]) for device in ("ada", "bob")]

    def add(where: Registry, release: Release) -> None:
        where.releases.add(release, actor=OPERATOR)

    errors = both(lambda: add(registry, made[0]), lambda: add(other, made[1]))
    (error,) = [each for each in errors if each]
    assert error.code == "release-number"
    assert len(registry.releases.all()) == 2


@pytest.mark.services
def test_constraints_alone_keep_writers_apart_and_a_loser_tries_again(
    postgres: Postgres, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQLite has one writer at a time, whatever we do.
    monkeypatch.setattr(database, "_LOCK", "SELECT 1")
    url, tries = postgres.fresh(), []
    one, other = open_registry(url, clock=clock), open_registry(url, clock=clock)
    line = threading.Barrier(2, timeout=30)

    def meet(where: Registry, name: str) -> None:
        def work(connection: Connection) -> ledger.Outcome[int]:
            tries.append(name)
            if tries.count(name) == 1:
                line.wait()  # both have begun, and see the same last row
            return ledger.Outcome(0, name)

        where.devices._ledger.change("test", {}, work, int, actor=name)

    with one, other:
        assert both(lambda: meet(one, "a"), lambda: meet(other, "b")) == [None, None]
        assert one.audit.verify().seq == 2
    assert len(tries) == 3


def test_a_conflict_that_stays_ends_after_a_few_tries(registry: Registry) -> None:
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        row = {"fingerprint": "f", "device": "nobody", "public_key": "k"}
        connection.execute(tables.device_keys.insert().values(row))

    with pytest.raises(StorageError) as caught:
        registry.database.change(work)
    assert caught.value.code == "registry-conflict"
    assert len(tries) == database.LARGEST_TRIES


def test_threads_share_one_registry(registry: Registry) -> None:
    def enroll(number: int) -> None:
        for each in range(4):
            name = f"device-{number}-{each}"
            registry.devices.enroll(name, key_of(name), actor=OPERATOR)

    errors = both(*(lambda number=number: enroll(number) for number in range(4)))  # type: ignore[misc]
    assert errors == [None] * 4
    assert len(registry.devices.all()) == len(DEVICES) + 16
    registry.audit.verify()
