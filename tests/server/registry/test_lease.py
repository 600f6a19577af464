"""One service at a time: the lease, and what happens to whoever lost it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from fleet.errors import StorageError
from fleet.supervise.child import ticks_of
from server.registry import Registry
from server.registry.lease import LEASE_S, LONGEST_AHEAD_S, RENEW_S, Holder
from server.standing.holding import is_gone, this_process
from tests.server.registry.filled import COORDINATOR, DEVICES, NOW_S, OPERATOR, Clock, answer
from tests.server.registry.filled import opened as open_round

Open = Callable[[], Registry]
ONE = Holder(host="attic", place="boot-1", pid=41, ticks=7)
TWO = Holder(host="cellar", place="boot-2", pid=42, ticks=8)


def beat(registry: Registry) -> None:
    registry.observations.beat(pid=1, version="test", started_at_s=NOW_S, doing={})


def lost(write: Callable[[], object]) -> None:
    with pytest.raises(StorageError) as caught:
        write()
    assert caught.value.code == "lease-lost"


def test_a_second_service_is_refused_and_told_who_serves_since_when(
    registry: Registry, open_again: Open, clock: Clock
) -> None:
    assert registry.for_service().lease.take(ONE) == 1
    clock.now_s += 12.0
    second = open_again().for_service()
    with pytest.raises(StorageError) as caught:
        second.lease.take(TWO)
    assert caught.value.code == "registry-served"
    since = "by process 41 on attic since 2023-11-14T22:13:20Z, heard of 12 s ago"
    assert since in caught.value.message
    assert "fleet server status" in caught.value.hint
    assert "2023-11-14T22:14:50Z" in caught.value.hint
    lost(lambda: beat(second))


def test_a_lease_is_stolen_after_its_expiry_and_not_before(
    registry: Registry, open_again: Open, clock: Clock
) -> None:
    registry.for_service().lease.take(ONE)
    second = open_again().for_service()
    clock.now_s += LEASE_S - 0.5
    with pytest.raises(StorageError):
        second.lease.take(TWO)
    clock.now_s += 0.5
    assert second.lease.take(TWO) == 2
    held = registry.lease.get()
    assert held is not None
    assert (held.holder, held.epoch, held.taken_at_s) == (TWO, 2, clock.now_s)


def test_writes_renew_a_lease_and_none_costs_more_than_one_renewal_in_a_while(
    registry: Registry, open_again: Open, clock: Clock
) -> None:
    first = registry.for_service()
    first.lease.take(ONE)
    for _ in range(4):
        clock.now_s += LEASE_S - 1.0
        beat(first)
        with pytest.raises(StorageError):
            open_again().for_service().lease.take(TWO)
    clock.now_s += RENEW_S / 2
    beat(first)
    held = registry.lease.get()
    assert held is not None
    assert held.renewed_at_s == clock.now_s - RENEW_S / 2


def test_whoever_lost_the_lease_writes_nothing_any_more(
    registry: Registry, open_again: Open, clock: Clock
) -> None:
    first, second = registry.for_service(), open_again().for_service()
    first.lease.take(ONE)
    plan = open_round(first)
    first.rounds.accept(1, *answer(plan, "ada"), actor=COORDINATOR)
    clock.now_s += LEASE_S
    second.lease.take(TWO)
    head, beats = registry.audit.head(), registry.observations.heartbeat()
    status = registry.devices.get("ada")
    lost(lambda: first.rounds.accept(1, *answer(plan, "bob"), actor=COORDINATOR))
    lost(lambda: first.rounds.abandon(1, why="late", actor=COORDINATOR))
    lost(lambda: first.releases.promote(0, actor=COORDINATOR))
    lost(lambda: first.observations.spend({"ada": 1}))
    lost(lambda: first.observations.told("ada", 0, ""))
    lost(lambda: beat(first))
    assert (registry.audit.head(), registry.observations.heartbeat()) == (head, beats)
    assert registry.devices.get("ada") == status
    assert [each.device for each in registry.rounds.updates(1)] == ["ada"]
    for device in DEVICES[1:]:
        assert second.rounds.accept(1, *answer(plan, device), actor=COORDINATOR)


def test_a_repeated_request_of_one_who_lost_the_lease_is_refused_too(
    registry: Registry, open_again: Open, clock: Clock
) -> None:
    first = registry.for_service()
    first.lease.take(ONE)
    open_round(first)
    first.rounds.abandon(1, why="x", actor=COORDINATOR, key="once")
    clock.now_s += LEASE_S
    open_again().for_service().lease.take(TWO)
    lost(lambda: first.rounds.abandon(1, why="x", actor=COORDINATOR, key="once"))


def test_operators_need_no_lease(registry: Registry, open_again: Open) -> None:
    registry.for_service().lease.take(ONE)
    open_again().devices.quarantine("ada", why="drifts", actor=OPERATOR)
    assert registry.devices.get("ada").quarantined is not None


def test_without_the_lease_a_service_writes_nothing(registry: Registry) -> None:
    lost(lambda: beat(registry.for_service()))
    assert registry.observations.heartbeat() is None


def test_a_lease_that_is_given_back_is_free_at_once(registry: Registry, open_again: Open) -> None:
    first, second = registry.for_service(), open_again().for_service()
    first.lease.take(ONE)
    first.lease.give_back()
    lost(lambda: beat(first))
    assert second.lease.take(TWO) == 2
    first.lease.give_back()  # it has none
    beat(second)


def test_giving_back_a_lost_lease_takes_it_from_nobody(
    registry: Registry, open_again: Open, clock: Clock
) -> None:
    first, second = registry.for_service(), open_again().for_service()
    first.lease.take(ONE)
    clock.now_s += LEASE_S
    second.lease.take(TWO)
    first.lease.give_back()
    with pytest.raises(StorageError):
        open_again().for_service().lease.take(ONE)
    beat(second)


def test_a_holder_that_is_known_to_be_dead_is_not_waited_for(
    registry: Registry, open_again: Open
) -> None:
    first = registry.for_service()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        ticks = ticks_of(child.pid)
        assert ticks is not None
        holder = this_process().model_copy(update={"pid": child.pid, "ticks": ticks})
        first.lease.take(holder)
        second = open_again().for_service()
        with pytest.raises(StorageError):
            second.lease.take(this_process(), is_gone)
        child.kill()
    assert second.lease.take(this_process(), is_gone) == 2
    with pytest.raises(StorageError):  # this one lives
        open_again().for_service().lease.take(TWO, is_gone)


def test_of_a_process_elsewhere_nothing_is_known() -> None:
    here = this_process()
    assert not is_gone(here)
    assert is_gone(here.model_copy(update={"ticks": here.ticks + 1}))  # its pid is used again
    assert not is_gone(here.model_copy(update={"ticks": 1, "place": "another boot"}))
    assert not is_gone(here.model_copy(update={"ticks": 1, "place": ""}))


def test_of_many_that_take_it_at_once_one_has_it(registry: Registry, open_again: Open) -> None:
    services = [open_again().for_service() for _ in range(4)]

    def take(number: int) -> str:
        holder = ONE.model_copy(update={"pid": number + 1})
        try:
            return str(services[number].lease.take(holder))
        except StorageError as error:
            return error.code

    with ThreadPoolExecutor(len(services)) as pool:
        came = sorted(pool.map(take, range(len(services))))
    assert came == ["1", *["registry-served"] * 3]


def test_a_clock_that_was_wrong_keeps_nobody_out_for_long(
    registry: Registry, open_again: Open, clock: Clock
) -> None:
    first = registry.for_service()
    clock.now_s += 365 * 86_400.0
    first.lease.take(ONE)
    clock.now_s = NOW_S
    beat(first)  # the holder renews it by the clock as it is now
    held = registry.lease.get()
    assert held is not None
    assert held.expires_at_s == NOW_S + LEASE_S
    clock.now_s -= LONGEST_AHEAD_S
    assert open_again().for_service().lease.take(TWO) == 2
