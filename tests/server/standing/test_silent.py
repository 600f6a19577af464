"""A node that is online and gives no answer holds up nobody else."""

from __future__ import annotations

from server.asking import TTL_SLACK_S
from server.standing.delivery import TELL_S
from server.standing.nodes import STATUS_EVERY_S, STATUS_S
from tests.server.registry.filled import OPERATOR
from tests.server.standing.mute import BRIEF_S, Mute, asked
from tests.server.standing.standing import Fleet


def test_a_node_that_never_says_who_it_is_delays_no_round_of_the_others(
    quick: Fleet, mute: Mute
) -> None:
    silent = quick.devices.names[2]
    mute.kinds.add((2, "query.status"))
    quick.policy(minimum=2, quorum=2)
    quick.released(2)
    assert quick.grid.clock() <= BRIEF_S
    absent = quick.registry.rounds.absences(1)[silent]
    assert (absent.reason, absent.detail) == ("silent", "has not said anything yet")


def test_a_node_that_falls_silent_is_left_out_with_the_reason_until_it_is_heard_again(
    quick: Fleet, mute: Mute
) -> None:
    silent = quick.devices.names[2]
    quick.policy(minimum=2, quorum=2, rounds=1)
    quick.released(1)
    assert silent in quick.registry.rounds.get(1).selected
    mute.kinds |= {(2, "query.status"), (2, "train")}
    quick.grid.wait(STATUS_EVERY_S)
    quick.run(lambda: bool(quick.events("node.silent")), steps=int(STATUS_S) + 5)
    (said,) = quick.events("node.silent")
    assert (said["device"], said["times"]) == (silent, 1)
    began = quick.grid.clock()
    quick.policy(minimum=2, quorum=2, rounds=3)
    quick.released(3)
    assert quick.grid.clock() - began <= BRIEF_S
    absent = quick.registry.rounds.absences(3)[silent]
    detail = "online, but 1 time(s) in a row no answer within 30 s"
    assert (absent.reason, absent.detail) == ("silent", detail)
    mute.kinds.clear()
    quick.steps(2)  # its late answer is heard; nothing has to be asked again
    quick.policy(minimum=2, quorum=2, rounds=4)
    quick.released(4)
    assert silent in quick.registry.rounds.get(4).selected


def test_a_silent_node_is_asked_again_after_ever_longer_pauses(quick: Fleet, mute: Mute) -> None:
    mute.kinds.add((2, "query.status"))
    while quick.grid.clock() < 300.0:
        quick.steps(1)
        quick.grid.wait(4.0)
    assert [each["again_in_s"] for each in quick.events("node.silent")] == [60.0, 120.0, 240.0]
    assert len(asked(mute, 2, "query.status")) == 3


def test_a_device_that_does_not_take_a_release_in_time_delays_no_round(
    quick: Fleet, mute: Mute
) -> None:
    slow = quick.devices.names[2]
    mute.kinds.add((2, "query.release"))
    quick.policy(minimum=3, quorum=3, rounds=2)
    quick.released(2)
    assert quick.grid.clock() <= BRIEF_S
    assert quick.registry.observations.deliveries().get(slow) is None
    quick.steps(int(TELL_S) + 10)
    kept = quick.registry.observations.deliveries()[slow]
    assert (kept.release, kept.reason) == (2, f"no answer within {TELL_S:g} s")
    mute.kinds.clear()
    quick.run(lambda: quick.devices.serves.get(slow) == 2)
    quick.steps(2)
    assert quick.registry.observations.deliveries()[slow].reason == ""


def test_a_device_is_not_told_a_release_twice_while_it_takes_it(quick: Fleet, mute: Mute) -> None:
    mute.kinds.add((1, "query.release"))
    quick.policy(rounds=1)
    quick.released(1)
    quick.steps(20)
    assert len(asked(mute, 1, "query.release")) == 1
    quick.policy(rounds=2)
    quick.released(2)
    quick.steps(3)  # of another release it is told at once
    assert len(asked(mute, 1, "query.release")) == 2


def test_reports_are_heard_while_a_round_is_open(quick: Fleet, mute: Mute) -> None:
    device = quick.devices.names[1]
    quick.policy(minimum=2, quorum=3, rounds=2, deadline_s=300.0)
    quick.released(1)
    mute.kinds |= {(1, "query.release"), (2, "train")}
    heard = []

    def wait(seconds: float) -> None:
        quick.grid.wait(seconds)
        if quick.registry.open_round() is not None:
            mute.kinds.discard((1, "query.release"))
            heard.append(quick.registry.observations.deliveries().get(device))

    object.__setattr__(quick.service.world, "wait", wait)
    quick.run(lambda: len(quick.registry.rounds.all()) == 2)
    assert heard[-1] is not None
    assert (heard[-1].release, heard[-1].reason) == (1, "")


def test_an_order_waits_for_devices_that_may_yet_say_who_they_are(quick: Fleet, mute: Mute) -> None:
    mute.kinds |= {(0, "query.status"), (1, "query.status"), (2, "query.status")}
    quick.policy(every_s=0.0)
    order = quick.registry.orders.place("start_round", actor=OPERATOR)
    quick.steps(5)
    assert quick.registry.orders.get(order.id).state.value == "taken"
    mute.kinds.clear()
    quick.released(1)
    assert quick.registry.orders.get(order.id).result == {"round": 1, "attempt": 1}


def test_an_order_fails_when_they_stay_silent(quick: Fleet, mute: Mute) -> None:
    mute.kinds |= {(0, "query.status"), (1, "query.status"), (2, "query.status")}
    quick.policy(every_s=0.0)
    order = quick.registry.orders.place("start_round", actor=OPERATOR)
    quick.steps(int(STATUS_S) + 5)
    why = quick.registry.orders.get(order.id).error
    assert "needs 3 eligible device(s), 0 are" in why
    assert "silent" in why


def test_questions_are_forgotten_when_their_messages_expire(quick: Fleet, mute: Mute) -> None:
    mute.kinds.add((2, "query.status"))
    quick.steps(1)
    open_now = quick.service.roster.questions._open
    assert len(open_now) == 1
    quick.grid.wait(STATUS_S + TTL_SLACK_S)
    quick.service.roster.refresh()
    assert quick.service.roster.questions._open == {}
