"""Which round comes next; for the service that opens it and for those who order it."""

from __future__ import annotations

from server.registry.records import RoundState
from server.registry.registry import Registry

__all__ = ["next_round"]


def next_round(registry: Registry) -> tuple[int, int]:
    """Return number and attempt of the round that comes next."""
    rounds = registry.rounds.all(newest=1)
    if not rounds:
        return 1, 1
    last = rounds[-1]
    if last.state is RoundState.abandoned:
        return last.round, last.attempt + 1
    return last.round + 1, 1
