"""What became of the newest order for a round, which no round shows when it failed."""

from __future__ import annotations

from typing import Any

from server.control.verbs.shown import utc
from server.registry import Registry
from server.registry.orders import Order, OrderState, Verb

__all__ = ["last_order", "shown_order"]


def last_order(registry: Registry) -> dict[str, Any] | None:
    """Return the newest order for a round as JSON; None when there was none.

    Returns:
        ``stands`` is true where it failed, no round is open and none was closed since, so the
        failure is the news. ``round`` and ``attempt`` are those that it opened, None before.
    """
    found = registry.orders.newest(Verb.start_round)
    if found is None:
        return None
    failed = found.finished if found.state is OrderState.failed else None
    rounds = registry.rounds.all(1)
    closed = rounds[-1].closed if rounds else None
    is_open = bool(rounds) and closed is None
    overtaken = failed is not None and closed is not None and closed.at_s > failed.at_s
    return {
        **shown_order(found),
        "placed": {"at": utc(found.placed.at_s), "by": found.placed.by},
        "error": found.error,
        "round": found.result.get("round"),
        "attempt": found.result.get("attempt"),
        "stands": failed is not None and not is_open and not overtaken,
    }


def shown_order(order: Order) -> dict[str, Any]:
    """Return an order as JSON, without what came of it."""
    return {"id": order.id, "verb": order.verb.value, "state": order.state.value}
