from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from fleet.errors import FleetError, RoundError
from fleet.federate.releases import Release
from server.control import requests as r
from server.control import service, watching
from server.control.errors import LateError
from server.control.local import LocalVerbs
from server.control.remote import RemoteVerbs
from server.control.roles import Role
from server.control.seam import Event
from server.control.service import Server, serve
from server.control.verbs.fleet import Fleet
from server.control.waiting import closed_round, watched
from server.control.watching import HEARTBEAT_S, follow
from server.registry.orders import Verb
from tests.server.control.controlling import (
    AUTHORITY,
    SERVER,
    known,
    local,
    remote,
    trust,
)
from tests.server.registry.filled import Clock, opened, run_round


class Time:
    """A clock that a wait moves; after ``waits`` of them nobody listens any more."""

    def __init__(self, waits: int = 10_000) -> None:
        self.now_s, self.left = 0.0, waits

    def now(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> bool:
        self.now_s += seconds
        self.left -= 1
        return self.left < 0


def rows(fleet: Fleet, after: int | None, time: Time, limit_s: float = 5.0) -> list[Event]:
    return list(follow(fleet, after, limit_s, now=time.now, wait=time.wait))


def test_a_watch_begins_with_a_sign_of_life_and_goes_on_from_where_it_is_told(
    fleet: Fleet,
) -> None:
    head = fleet.registry.audit.head().seq
    found = rows(fleet, head - 3, Time())
    assert [(each.seq, bool(each.verb)) for each in found] == [
        (head - 3, False),
        *((seq, True) for seq in range(head - 2, head + 1)),
    ]
    assert [each.seq for each in rows(fleet, None, Time())] == [head]
    audit = fleet.registry.audit.rows(newest=3)
    assert [each.verb for each in found[1:]] == [row.verb for row in audit]


def test_a_watch_from_the_beginning_has_every_row_however_small_its_page(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = fleet.registry.audit.head().seq
    for page in (1, 2, head - 1, head, head + 1):
        monkeypatch.setattr(watching, "LARGEST_PAGE", page)
        assert [e.seq for e in rows(fleet, 0, Time())[1:]] == list(range(1, head + 1))


def test_a_quiet_watch_gives_signs_of_life_and_ends_in_time(fleet: Fleet) -> None:
    time = Time()
    found = rows(fleet, None, time, 3.5 * HEARTBEAT_S)
    assert [each.verb for each in found] == [""] * 4
    assert time.now_s == pytest.approx(3.5 * HEARTBEAT_S)


def test_a_watch_ends_when_its_reader_has_gone(fleet: Fleet) -> None:
    time = Time(waits=3)
    assert len(rows(fleet, None, time, 1000.0)) == 1
    assert time.left < 0


def test_a_watch_from_afar_sees_what_happens_meanwhile(
    admin: RemoteVerbs, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "POLL_S", 0.01)
    stream = admin.watch(None, 30.0)
    alive = next(stream)
    fleet.registry.devices.tag("bob", add=["attic"], actor="bea")
    event = next(stream)
    assert (event.seq, event.actor, event.verb, event.subject) == (
        *(alive.seq + 1, "bea"),
        *("device.tag", "bob"),
    )
    assert event.detail["add"] == ["attic"]


def test_a_watch_goes_on_from_where_it_was_when_the_server_is_another(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "POLL_S", 0.01)
    first = serve(fleet, "127.0.0.1:0", SERVER, AUTHORITY.certificate)
    again: list[Server] = []

    def start_again(_: float) -> None:
        if not again:
            fleet.registry.devices.tag("bob", add=["attic"], actor="bea")
            address = f"127.0.0.1:{first.port}"
            again.append(serve(fleet, address, SERVER, AUTHORITY.certificate))

    with RemoteVerbs(
        f"127.0.0.1:{first.port}", known(fleet, trust(Role.viewer)), wait=start_again
    ) as verbs:
        stream = verbs.watch(None, 60.0)
        alive = next(stream)
        # As a server that is lost: the stream breaks, it does not end.
        first._server.stop(0).wait(30)
        seen = [next(each for each in stream if each.verb)]
    for server in (first, *again):
        server.close(0)
    assert [(each.seq, each.verb) for each in seen] == [(alive.seq + 1, "device.tag")]


def test_only_so_many_may_watch(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "MOST_WATCHES", 1)
    with remote(fleet, trust(Role.viewer)) as verbs:
        first = verbs.watch(None, 30.0)
        assert next(first)
        with pytest.raises(FleetError) as refused:
            next(verbs.watch(None, 30.0))
        assert refused.value.code == "busy"


def test_a_closing_server_ends_its_watches(fleet: Fleet) -> None:
    server = serve(fleet, "127.0.0.1:0", SERVER, AUTHORITY.certificate)
    with RemoteVerbs(f"127.0.0.1:{server.port}", known(fleet, trust(Role.viewer))) as verbs:
        stream = verbs.watch(None, 0.0)
        assert next(stream)
        closing = threading.Thread(target=server.close)
        closing.start()
        assert list(stream) == []
        closing.join(30)
        assert not closing.is_alive()


class Watched(LocalVerbs):
    """Verbs in whose watch something happens."""

    def __init__(self, inner: LocalVerbs, then: Callable[[], object] = lambda: None) -> None:
        super().__init__(inner._fleet, "anna")
        self._then = then

    def watch(self, after: int | None, limit_s: float) -> Iterator[Event]:
        self._then()
        yield from super().watch(after, 0.01)


def test_a_watch_without_a_limit_goes_on_when_the_server_has_ended_it(fleet: Fleet) -> None:
    head = fleet.registry.audit.head().seq
    stream = watched(Watched(local(fleet)), head - 1, 0.0)
    assert [next(stream).seq for _ in range(4)] == [head - 1, head, head, head]


def test_a_wait_for_a_closed_round_returns_at_once(fleet: Fleet) -> None:
    assert closed_round(local(fleet), 1, 1.0)["release"] == 1


@pytest.mark.parametrize("number", [None, 3])
def test_a_wait_sees_the_round_close(
    fleet: Fleet, releases: list[Release], number: int | None
) -> None:
    verbs = Watched(local(fleet), lambda: run_round(fleet.registry, releases[2], 3))
    assert closed_round(verbs, number, 5.0)["round"] == 3


def test_a_wait_for_a_round_that_is_abandoned_fails(fleet: Fleet, releases: list[Release]) -> None:
    opened(fleet.registry, releases[2], 3)

    def abandon() -> None:
        fleet.registry.rounds.abandon(3, why="stuck", actor="c")

    with pytest.raises(RoundError) as failed:
        closed_round(Watched(local(fleet), abandon), 3, 5.0)
    assert (failed.value.code, failed.value.exit_code) == ("round-abandoned", 1)


def test_a_wait_ends_in_time_with_exit_code_3(fleet: Fleet) -> None:
    for number in (None, 3):
        with pytest.raises(LateError) as late:
            closed_round(Watched(local(fleet)), number, 5.0)
        assert (late.value.code, late.value.exit_code) == ("wait-timeout", 3)


def ordered(fleet: Fleet, start: Release, number: int) -> None:
    """Order a round, open and close it as the service does."""
    order = fleet.registry.orders.place("start_round", {}, actor="anna")
    fleet.registry.orders.take(order.id, actor="service")
    run_round(fleet.registry, start, number)
    fleet.registry.orders.finish(order.id, {"round": number, "attempt": 1}, actor="service")


def test_a_wait_that_begins_after_the_ordered_round_closed_returns_at_once(
    fleet: Fleet, releases: list[Release]
) -> None:
    ordered(fleet, releases[2], 3)
    assert closed_round(local(fleet), None, 0.0)["round"] == 3
    opened(fleet.registry, fleet.registry.releases.load(3), 4)  # by the policy
    assert closed_round(local(fleet), None, 0.0)["round"] == 3


def test_an_order_of_long_ago_does_not_end_a_wait(fleet: Fleet, releases: list[Release]) -> None:
    ordered(fleet, releases[2], 3)
    run_round(fleet.registry, fleet.registry.releases.load(3), 4)
    with pytest.raises(LateError):
        closed_round(Watched(local(fleet)), None, 0.1)


def test_a_wait_sees_the_round_of_an_order_that_the_service_has_yet_to_take(
    fleet: Fleet, releases: list[Release]
) -> None:
    fleet.registry.orders.place("start_round", {}, actor="anna")
    verbs = Watched(local(fleet), lambda: run_round(fleet.registry, releases[2], 3))
    assert closed_round(verbs, None, 5.0)["round"] == 3


def test_a_wait_after_a_number_returns_the_first_above_it(
    fleet: Fleet, releases: list[Release]
) -> None:
    assert closed_round(local(fleet), None, 0.0, after=0)["round"] == 1
    assert closed_round(local(fleet), None, 0.0, after=1)["round"] == 2
    verbs = Watched(local(fleet), lambda: run_round(fleet.registry, releases[2], 3))
    assert closed_round(verbs, None, 5.0, after=2)["round"] == 3
    with pytest.raises(LateError):
        closed_round(Watched(local(fleet)), None, 0.1, after=3)


def test_a_wait_for_a_round_that_is_ordered_again_does_not_end_by_its_first_attempt(
    fleet: Fleet, releases: list[Release]
) -> None:
    opened(fleet.registry, releases[2], 3)
    fleet.registry.rounds.abandon(3, why="stuck", actor="c")
    fleet.registry.orders.place("start_round", {}, actor="anna")
    verbs = Watched(local(fleet), lambda: run_round(fleet.registry, releases[2], 3))
    assert closed_round(verbs, 3, 5.0)["attempt"] == 2
    with pytest.raises(LateError):
        closed_round(Watched(local(fleet)), None, 0.1)


@pytest.mark.parametrize(("number", "after"), [(3, None), (None, 2)])
def test_a_wait_for_an_abandoned_round_tells_why_the_newest_order_for_it_failed(
    fleet: Fleet, releases: list[Release], clock: Clock, number: int | None, after: int | None
) -> None:
    opened(fleet.registry, releases[2], 3)
    fleet.registry.rounds.abandon(3, why="stuck", actor="c")
    orders = fleet.registry.orders
    order = orders.place("start_round", {}, actor="anna")
    orders.finish(order.id, error="only 2 are here", actor="service")
    with pytest.raises(RoundError, match="only 2 are here") as failed:
        closed_round(Watched(local(fleet)), number, 0.1, after=after)
    assert failed.value.code == "order-failed"
    clock.now_s += 1
    opened(fleet.registry, releases[2], 3)
    fleet.registry.rounds.abandon(3, why="stuck again", actor="c")
    with pytest.raises(RoundError, match="stuck again"):
        closed_round(Watched(local(fleet)), number, 0.1, after=after)


def test_a_wait_after_a_number_returns_the_next_one_however_many_came_since(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.control.waiting.NEWEST", 1)
    assert closed_round(local(fleet), None, 0.0, after=0)["round"] == 1


def test_an_order_tells_the_number_of_its_round(fleet: Fleet, releases: list[Release]) -> None:
    verbs = local(fleet)
    assert verbs.ask(r.RoundStart(key="k1")).data["round"] == 3
    opened(fleet.registry, releases[2], 3)
    fleet.registry.rounds.abandon(3, why="stuck", actor="c")
    assert verbs.ask(r.RoundStart(key="k2")).data["round"] == 3
    run_round(fleet.registry, releases[2], 3)
    assert verbs.ask(r.RoundStart(key="k3")).data["round"] == 4
    order = fleet.registry.orders.newest(Verb.start_round)
    assert order is not None
    fleet.registry.orders.finish(order.id, {"round": 4, "attempt": 1}, actor="service")
    run_round(fleet.registry, fleet.registry.releases.load(3), 4)
    assert verbs.ask(r.RoundStart(key="k3")).data["round"] == 4  # the same request again
