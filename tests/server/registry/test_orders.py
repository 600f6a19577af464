from __future__ import annotations

from collections.abc import Callable

import pytest

from fleet.errors import InputError, RoundError
from server.registry import Registry, orders
from server.registry.orders import OrderState, Verb
from tests.server.registry.filled import BASE, NOW_S, OPERATOR, Clock

SERVICE = "service"


def test_an_order_waits_is_taken_and_ends_with_what_came_of_it(
    registry: Registry, open_again: Callable[[], Registry], clock: Clock
) -> None:
    placed = registry.orders.place("evaluate", {"release": 0}, actor=OPERATOR, key="k")
    assert (placed.verb, placed.state, placed.actor) == (
        Verb.evaluate,
        OrderState.waiting,
        OPERATOR,
    )
    assert placed.placed.at_s == NOW_S
    assert open_again().orders.waiting() == (placed,)
    clock.now_s += 1
    taken = registry.orders.take(placed.id, actor=SERVICE)
    assert registry.orders.take(placed.id, actor=SERVICE) == taken
    assert registry.orders.waiting() == ()
    assert registry.orders.taken() == (taken,)
    done = registry.orders.finish(placed.id, {"devices": 3}, actor=SERVICE)
    assert done == open_again().orders.get(placed.id)
    assert (done.state, done.result, done.error) == (OrderState.done, {"devices": 3}, "")
    verbs = [row.verb for row in registry.audit.rows(subject=f"order {placed.id}")]
    assert verbs == ["order.place", "order.take", "order.finish"]


def test_an_order_that_failed_says_why_and_never_ends_again(registry: Registry) -> None:
    placed = registry.orders.place("abort_round", {"reason": "hot"}, actor=OPERATOR)
    failed = registry.orders.finish(placed.id, error="no round is open", actor=SERVICE)
    assert (failed.state, failed.error) == (OrderState.failed, "no round is open")
    for again in (registry.orders.take, registry.orders.finish):
        with pytest.raises(RoundError) as caught:
            again(placed.id, actor=SERVICE)
        assert caught.value.code == "order-finished"


def test_a_rebase_names_an_installed_base_and_what_else_it_may_say(registry: Registry) -> None:
    placed = registry.orders.place("rebase", {"base": BASE.digest}, actor=OPERATOR)
    assert placed.args == {
        "base": BASE.digest,
        "method": "",
        "hold": False,
        "another_network": False,
        "why": "",
    }
    with pytest.raises(InputError) as caught:
        registry.orders.place("rebase", {"base": "c" * 64}, actor=OPERATOR)
    assert caught.value.code == "no-such-base"
    for args in ({}, {"base": 3}, {"base": BASE.digest, "hold": 1}, {"base": "c", "more": ""}):
        with pytest.raises(InputError, match=r"takes base \(str\), method \(str\), hold") as caught:
            registry.orders.place("rebase", args, actor=OPERATOR)
        assert caught.value.code == "bad-order"
    assert registry.orders.all() == (placed,)


def test_the_same_key_places_one_order(registry: Registry) -> None:
    first = registry.orders.place("start_round", actor=OPERATOR, key="once")
    assert registry.orders.place("start_round", actor=OPERATOR, key="once") == first
    assert registry.orders.all() == (first,)


def test_orders_are_taken_in_the_order_in_which_they_came(registry: Registry) -> None:
    made = [registry.orders.place("start_round", actor=OPERATOR) for _ in range(3)]
    assert registry.orders.waiting() == tuple(made)
    assert registry.orders.all(newest=2) == tuple(made[1:])


def test_the_queue_is_bounded(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "LARGEST_QUEUE", 2)
    first = registry.orders.place("start_round", actor=OPERATOR)
    registry.orders.place("start_round", actor=OPERATOR)
    with pytest.raises(RoundError, match="at most 2 orders wait") as caught:
        registry.orders.place("start_round", actor=OPERATOR)
    assert caught.value.code == "queue-full"
    registry.orders.take(first.id, actor=SERVICE)
    registry.orders.place("start_round", actor=OPERATOR)


@pytest.mark.parametrize(
    ("verb", "args", "code"),
    [
        ("dance", {}, "bad-order"),
        ("start_round", {"fast": True}, "bad-order"),
        ("abort_round", {}, "bad-order"),
        ("abort_round", {"reason": 3}, "bad-order"),
        ("evaluate", {"release": True}, "bad-order"),
        ("evaluate", {"release": 7}, "no-such-release"),
    ],
)
def test_an_order_that_nobody_could_carry_out_is_refused(
    registry: Registry, verb: str, args: dict[str, object], code: str
) -> None:
    with pytest.raises(InputError) as caught:
        registry.orders.place(verb, args, actor=OPERATOR)
    assert caught.value.code == code
    assert registry.orders.all() == ()


def test_an_order_that_nobody_placed_is_not_there(registry: Registry) -> None:
    with pytest.raises(InputError) as caught:
        registry.orders.get(1)
    assert caught.value.code == "no-such-order"
