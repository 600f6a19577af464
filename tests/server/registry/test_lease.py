"""One service at a time: the lease, and what happens to whoever lost it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fleet.errors import StorageError
from fleet.supervise.child import ticks_of
from server.registry import Registry
from server.registry.lease import LEASE_S, LONGEST_AHEAD_S, RENEW_S, Holder
from server.standing import holding
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
    here, long_s = this_process(), 1e12
    assert not is_gone(here, long_s)
    assert is_gone(here.model_copy(update={"ticks": here.ticks + 1}), 0.0)  # its pid is used again
    assert not is_gone(here.model_copy(update={"ticks": 1, "place": "another boot"}), long_s)
    assert not is_gone(here.model_copy(update={"ticks": 1, "place": ""}), long_s)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make this process believe that it runs on another machine, or another boot of one."""

    def be(machine: str = "m-1", boot: str = "boot-1", host: str = "attic", up_s: float = 20.0):
        for name, text in (("_MACHINE", machine), ("_BOOT", boot)):
            file = tmp_path / name
            file.unlink(missing_ok=True)
            if text:
                file.write_text(f"{text}\n")
            monkeypatch.setattr(holding, name, file)
        monkeypatch.setattr(holding, "_host", lambda: host)
        monkeypatch.setattr(holding, "_up_s", lambda: up_s)

    return be


def test_after_a_reboot_nobody_waits_for_the_service_of_the_boot_before(
    registry: Registry, open_again: Open, clock: Clock, machine: Callable[..., None]
) -> None:
    machine()
    registry.for_service().lease.take(this_process(), is_gone)
    clock.now_s += 30.0
    machine(boot="boot-2")  # the pid may well be alive: this process has it
    assert open_again().for_service().lease.take(this_process(), is_gone) == 2


@pytest.mark.parametrize(
    "now",
    [
        {"boot": "boot-2", "machine": "m-2"},
        {"boot": "boot-2", "machine": ""},
        {"boot": "", "machine": "m-1"},
        {"boot": "boot-2", "host": "cellar"},
        {"boot": "boot-2", "up_s": 31.0},  # it was heard of since: a twin made of the same image
        {"boot": "boot-1"},
    ],
)
def test_the_service_of_another_machine_or_a_twin_that_lives_keeps_its_lease_until_it_expires(
    registry: Registry,
    open_again: Open,
    clock: Clock,
    machine: Callable[..., None],
    now: dict[str, Any],
) -> None:
    machine()
    registry.for_service().lease.take(this_process(), is_gone)
    clock.now_s += 30.0
    machine(**now)
    second = open_again().for_service()
    with pytest.raises(StorageError) as caught:
        second.lease.take(this_process(), is_gone)
    assert caught.value.code == "registry-served"
    clock.now_s += LEASE_S
    assert second.lease.take(this_process(), is_gone) == 2


def test_a_lease_of_a_software_that_kept_no_machine_waits_for_its_expiry(
    machine: Callable[..., None],
) -> None:
    machine(machine="")
    before = this_process()
    machine(boot="boot-2")
    assert not is_gone(before, 1e12)


def test_the_id_of_the_machine_does_not_leave_it(machine: Callable[..., None]) -> None:
    machine(machine="0123456789abcdef0123456789abcdef")
    place = this_process().place
    assert "0123456789abcdef" not in place
    assert len(place.split("/")) == 3
    assert len(this_process().place) <= 128


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
