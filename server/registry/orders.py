"""Orders: what an operator asks of the service, which takes them one after the other.

waiting ──take──► taken ──finish──► done, failed
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from pydantic import Field
from sqlalchemy import ColumnElement, Connection, Row, func, insert, select, update

from fleet.errors import InputError, RoundError
from server.registry import standing_tables as tables
from server.registry.bases import bases_of, no_base
from server.registry.ledger import Ledger, Outcome, canonical, parsed
from server.registry.records import Deed, Record
from server.registry.rows import checked_release, cleaned, deed, done

__all__ = ["LARGEST_PAGE", "LARGEST_QUEUE", "Order", "OrderState", "Orders", "Verb"]

LARGEST_QUEUE = 100
"""Orders that may wait for the service at a time."""
LARGEST_PAGE = 1000
"""Orders of one answer."""


class Verb(str, Enum):
    """What can be ordered, with its arguments."""

    start_round = "start_round"  # none
    abort_round = "abort_round"  # reason: str
    evaluate = "evaluate"  # release: int
    rebase = "rebase"  # base: str; method: str, hold: bool, another_network: bool, why: str


_NEEDED: Mapping[Verb, Mapping[str, type]] = {
    Verb.start_round: {},
    Verb.abort_round: {"reason": str},
    Verb.evaluate: {"release": int},
    Verb.rebase: {"base": str},
}
_OPTIONAL: Mapping[Verb, Mapping[str, Any]] = {
    Verb.rebase: {"method": "", "hold": False, "another_network": False, "why": ""}
}
_FREE = frozenset({"reason", "why"})  # text that people write


class OrderState(str, Enum):
    """Where an order stands."""

    waiting = "waiting"
    taken = "taken"
    done = "done"
    failed = "failed"


class Order(Record):
    """One order.

    Args:
        id: From 1, ascending.
        verb: What is to be done.
        args: With what, JSON.
        state: Where it stands.
        placed: When and by whom.
        taken: When the service took it; None while it waits.
        finished: When it was done or failed, with the error as the reason; None before.
        result: What came of it, JSON; empty before and for one that failed.
    """

    id: int
    verb: Verb
    args: Mapping[str, Any]
    state: OrderState
    placed: Deed
    taken: Deed | None = None
    finished: Deed | None = None
    result: Mapping[str, Any] = Field(default_factory=dict)

    @property
    def actor(self) -> str:
        """Who placed it."""
        return self.placed.by

    @property
    def error(self) -> str:
        """Why it failed; empty for one that did not."""
        failed = self.finished is not None and self.state is OrderState.failed
        return self.finished.why if failed and self.finished is not None else ""


class Orders:
    """The orders of a registry. Every change names its ``actor`` and may carry a ``key``.

    Args:
        ledger: Where they are kept.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def place(
        self,
        verb: Verb | str,
        args: Mapping[str, Any] | None = None,
        *,
        actor: str,
        key: str | None = None,
    ) -> Order:
        """Ask the service to do something.

        Args:
            verb: See :class:`Verb`.
            args: Its arguments.
            actor: Who.
            key: Idempotency key.

        Raises:
            InputError: ``bad-order``, or ``no-such-release`` and ``release-withdrawn``, or
                ``no-such-base``.
            RoundError: ``queue-full`` while :data:`LARGEST_QUEUE` orders wait.
        """
        chosen, given = _checked(verb, args or {})

        def work(connection: Connection) -> Outcome[Order]:
            if chosen is Verb.evaluate:
                checked_release(connection, given["release"])
            if chosen is Verb.rebase and not bases_of(connection, given["base"]):
                raise no_base(given["base"])
            waiting = tables.orders.c.state == OrderState.waiting.value
            queued = select(func.count()).select_from(tables.orders).where(waiting)
            if (length := connection.execute(queued).scalar_one()) >= LARGEST_QUEUE:
                raise RoundError(
                    "queue-full",
                    f"at most {LARGEST_QUEUE} orders wait for the service, and {length} do",
                    "See whether the service runs: fleet server status",
                )
            row = {"verb": chosen.value, "args": canonical(given), "state": "waiting"}
            by = done("placed", self._ledger.clock(), actor)
            made = connection.execute(insert(tables.orders).values(**row, **by))
            key_of_row = made.inserted_primary_key
            assert key_of_row is not None
            order = _one(connection, int(key_of_row[0]))
            return Outcome(order, _subject(order.id))

        asked = {"verb": chosen.value, "args": given}
        return self._ledger.change("order.place", asked, work, Order, actor=actor, key=key)

    def waiting(self) -> tuple[Order, ...]:
        """Return the orders that nobody has taken, the oldest first."""
        return self._in(OrderState.waiting)

    def taken(self) -> tuple[Order, ...]:
        """Return the orders that were taken and not finished, the oldest first."""
        return self._in(OrderState.taken)

    def get(self, order: int) -> Order:
        """Return an order.

        Raises:
            InputError: ``no-such-order``.
        """
        with self._ledger.database.read() as connection:
            return _one(connection, order)

    def all(self, newest: int = LARGEST_PAGE) -> tuple[Order, ...]:
        """Return the newest orders, in order; at most :data:`LARGEST_PAGE`.

        Raises:
            InputError: ``bad-page``.
        """
        if not 1 <= newest <= LARGEST_PAGE:
            raise InputError("bad-page", f"a page has 1 to {LARGEST_PAGE} orders, not {newest}")
        kept = tables.orders
        query = select(kept).order_by(kept.c.id.desc()).limit(newest)
        with self._ledger.database.read() as connection:
            rows = connection.execute(query).all()
        return tuple(_row(each) for each in reversed(rows))

    def newest(self, verb: Verb) -> Order | None:
        """Return the last order of a kind; None when there was none."""
        kept = tables.orders
        query = select(kept).where(kept.c.verb == verb.value).order_by(kept.c.id.desc()).limit(1)
        with self._ledger.database.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _row(row)

    def take(self, order: int, *, actor: str, key: str | None = None) -> Order:
        """Begin an order; changes nothing when it was taken before and is not finished.

        Raises:
            InputError: ``no-such-order``.
            RoundError: ``order-finished``.
        """

        def work(connection: Connection) -> Outcome[Order]:
            before = _one(connection, order)
            if before.state is OrderState.taken:
                return Outcome(before, _subject(order), changed=False)
            _check_unfinished(before)
            by = done("taken", self._ledger.clock(), actor)
            _set(connection, order, {"state": OrderState.taken.value, **by})
            return Outcome(_one(connection, order), _subject(order))

        asked = {"order": order}
        return self._ledger.change("order.take", asked, work, Order, actor=actor, key=key)

    def finish(
        self,
        order: int,
        result: Mapping[str, Any] | None = None,
        *,
        error: str = "",
        actor: str,
        key: str | None = None,
    ) -> Order:
        """End an order, with what came of it or why nothing did.

        Raises:
            InputError: ``no-such-order``.
            RoundError: ``order-finished``.
        """
        state = OrderState.failed if error else OrderState.done

        def work(connection: Connection) -> Outcome[Order]:
            _check_unfinished(_one(connection, order))
            by = done("finished", self._ledger.clock(), actor, error)
            values = {"state": state.value, "result": canonical(dict(result or {})), **by}
            _set(connection, order, values)
            return Outcome(_one(connection, order), _subject(order))

        asked = {"order": order, "result": dict(result or {}), "error": cleaned(error)}
        return self._ledger.change("order.finish", asked, work, Order, actor=actor, key=key)

    def _in(self, state: OrderState) -> tuple[Order, ...]:
        with self._ledger.database.read() as connection:
            return _found(connection, tables.orders.c.state == state.value)


def _checked(verb: Verb | str, args: Mapping[str, Any]) -> tuple[Verb, dict[str, Any]]:
    try:
        chosen = Verb(verb)
    except ValueError:
        known = ", ".join(each.value for each in Verb)
        raise InputError("bad-order", f"an order is one of {known}, not {verb!r}") from None
    optional = _OPTIONAL.get(chosen, {})
    given = {**optional, **args}
    wanted = {**_NEEDED[chosen], **{name: type(value) for name, value in optional.items()}}
    fits = given.keys() == wanted.keys()
    if not fits or any(type(given[name]) is not kind for name, kind in wanted.items()):
        listed = ", ".join(f"{name} ({kind.__name__})" for name, kind in wanted.items())
        takes = f"takes {listed}" if listed else "takes no argument"
        raise InputError("bad-order", f"{chosen.value} {takes}, not {sorted(given)}")
    for name in _FREE.intersection(given):
        given[name] = cleaned(given[name])
    return chosen, given


def _found(connection: Connection, *where: ColumnElement[bool]) -> tuple[Order, ...]:
    kept = tables.orders
    rows = connection.execute(select(kept).where(*where).order_by(kept.c.id)).all()
    return tuple(_row(each) for each in rows)


def _one(connection: Connection, order: int) -> Order:
    found = _found(connection, tables.orders.c.id == order)
    if not found:
        raise InputError("no-such-order", f"there is no order {order}", "")
    return found[0]


def _check_unfinished(order: Order) -> None:
    if order.state in (OrderState.done, OrderState.failed):
        raise RoundError("order-finished", f"order {order.id} is {order.state.value} already")


def _set(connection: Connection, order: int, values: Mapping[str, Any]) -> None:
    table = tables.orders
    connection.execute(update(table).where(table.c.id == order).values(**values))


def _row(row: Row[Any]) -> Order:
    placed = deed(row, "placed")
    assert placed is not None
    return Order(
        id=row.id,
        verb=row.verb,
        args=parsed(row.args),
        state=row.state,
        placed=placed,
        taken=deed(row, "taken"),
        finished=deed(row, "finished"),
        result=parsed(row.result),
    )


def _subject(order: int) -> str:
    return f"order {order}"
