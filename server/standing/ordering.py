"""Orders on the service's desk: taken one after the other, each finished with what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fleet.errors import FleetError, StorageError
from server.registry import Registry
from server.registry.orders import Order, Verb
from server.standing.world import World

__all__ = ["ACTOR", "Desk"]

ACTOR = "service"
Result = Mapping[str, Any]


@dataclass
class Desk:
    """The orders that the service has taken.

    Args:
        registry: Where they are placed.
        world: Words.
        evaluate: Begins to evaluate a release.
        rebase: Moves the fleet to another base; done again it finds what was done.
        busy: Tells that no further evaluation may begin now.

    Attributes:
        start: The order that the next round answers.
        abort: The order that ends the open round.
        judged: The orders to evaluate a release of which nothing has come yet.
    """

    registry: Registry
    world: World
    evaluate: Callable[[int], None]
    rebase: Callable[[Order], Result]
    busy: Callable[[], bool]
    start: Order | None = field(default=None, init=False)
    abort: Order | None = field(default=None, init=False)
    judged: list[Order] = field(default_factory=list, init=False)

    def settle(self) -> None:
        """Settle the orders that a service took which then ended; call once, before any other."""
        rounds = self.registry.rounds.all(newest=1)
        last = rounds[-1] if rounds else None
        for order in self.registry.orders.taken():
            assert order.taken is not None
            # A round that was opened since is the one that was ordered.
            opened = last is not None and last.opened.at_s >= order.taken.at_s
            closed = last is not None and last.closed is not None
            done = closed if order.verb is Verb.abort_round else opened
            of_rounds = order.verb in (Verb.start_round, Verb.abort_round)
            if of_rounds and done and last is not None:
                self.finish(order, {"round": last.round, "attempt": last.attempt})
            else:
                self._do(order)

    def clear(self) -> None:
        """Take the orders that wait; for when no round is open."""
        for order in self.registry.orders.waiting():
            if order.verb is not Verb.evaluate or not self.busy():
                self._do(self._take(order))

    def glance(self) -> bool:
        """Take the orders that concern an open round; tell whether it is to be aborted."""
        for order in self.registry.orders.waiting() if self.abort is None else ():
            if order.verb is Verb.abort_round:
                self.abort = self._take(order)
                break
            if order.verb is Verb.start_round:
                self.fail(self._take(order), "a round is open already")
        return self.abort is not None

    def _do(self, order: Order) -> None:
        if order.verb is Verb.evaluate:
            try:
                self.evaluate(int(order.args["release"]))
            except StorageError:
                raise
            except FleetError as error:
                self.fail(order, error.message)
            else:
                self.judged.append(order)
        elif order.verb is Verb.rebase:
            try:
                result = self.rebase(order)
            except StorageError:
                raise
            except FleetError as error:
                self.fail(order, f"{error.code}: {error.message}", error.hint)
            else:
                self.finish(order, result)
        elif order.verb is Verb.abort_round:
            if self.abort is None and self.registry.open_round() is not None:
                self.abort = order
            else:
                self.fail(order, "no round is open")
        elif self.start is None:
            self.start = order
        else:
            self.fail(order, f"order {self.start.id} starts one already")

    def evaluated(self, release: int, result: Result) -> None:
        """Finish the orders to evaluate a release."""
        for order in [each for each in self.judged if each.args["release"] == release]:
            self.finish(order, result)
            self.judged.remove(order)

    def _take(self, order: Order) -> Order:
        taken = self.registry.orders.take(order.id, actor=ACTOR)
        self.world.say("order.taken", order=order.id, verb=order.verb.value, by=order.actor)
        return taken

    def finish(self, order: Order | None, result: Result) -> None:
        """Say what came of an order, if there was one."""
        if order is not None:
            self.registry.orders.finish(order.id, result, actor=ACTOR)
            self.world.say("order.done", order=order.id, verb=order.verb.value, **result)

    def fail(self, order: Order | None, why: str, step: str = "") -> None:
        """Say why nothing came of an order, if there was one, and what the next step is."""
        if order is not None:
            why = f"{why}; next: {step}" if step else why
            self.registry.orders.finish(order.id, error=why, actor=ACTOR)
            self.world.say("order.failed", order=order.id, verb=order.verb.value, why=why)
