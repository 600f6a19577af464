"""What a round may do next: the rules of opening and closing, each a check in a transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, func, select, update

from fleet.errors import InputError, MismatchError, RoundError
from fleet.federate.records import Plan
from server.registry import tables
from server.registry.records import RoundRow, RoundState
from server.registry.rows import checked_release, done, rounds_of

__all__ = [
    "attempt_of",
    "check_none_open",
    "check_start",
    "close_round",
    "one_round",
    "open_now",
    "subject_of",
]


def one_round(connection: Connection, number: int, attempt: int | None = None) -> RoundRow:
    """Return a round's last attempt, or the one that is asked for.

    Raises:
        InputError: ``no-such-round``.
    """
    kept = tables.rounds.c
    found = rounds_of(connection, kept.round == number)
    chosen = [row for row in found if attempt in (None, row.attempt)]
    if not chosen:
        which = f"round {number}" if attempt is None else f"attempt {attempt} of round {number}"
        raise InputError("no-such-round", f"there is no {which}", "See them: fleet round list")
    return chosen[-1]


def open_now(connection: Connection, number: int) -> RoundRow:
    """Return a round that is open, without its cohort, which may be large.

    Raises:
        RoundError: ``round-closed``.
    """
    kept = tables.rounds.c
    still = kept.state == RoundState.open.value
    found = rounds_of(connection, kept.round == number, still, cohorts=False)
    if not found:
        raise RoundError(
            "round-closed",
            f"round {number} is not open; what comes for it now changes nothing",
            f"See how it ended: fleet round show {number}",
        )
    return found[0]


def close_round(
    connection: Connection,
    row: RoundRow,
    state: RoundState,
    values: Mapping[str, Any],
    by: tuple[float, str, str],
) -> RoundRow:
    """Close an open round; part of the caller's transaction."""
    table = tables.rounds
    which = (table.c.round == row.round) & (table.c.attempt == row.attempt)
    changes = {"state": state.value, **values, **done("closed", *by)}
    connection.execute(update(table).where(which).values(**changes))
    return one_round(connection, row.round, row.attempt)


def check_none_open(connection: Connection) -> None:
    """Refuse a second open round.

    Raises:
        RoundError: ``round-open``.
    """
    found = rounds_of(connection, tables.rounds.c.state == RoundState.open.value)
    if found:
        raise RoundError(
            "round-open",
            f"one round at a time: round {found[0].round} is open since it was opened by "
            f"{found[0].opened.by}",
            "Resume it, or abandon it: fleet round abort",
        )


def attempt_of(connection: Connection, number: int) -> int:
    """Return the attempt that a round opens with.

    Raises:
        RoundError: ``round-number``.
    """
    kept = tables.rounds.c
    last = int(connection.execute(select(func.max(kept.round))).scalar() or 0)
    before = rounds_of(connection, kept.round == last)
    if number == last and before and before[-1].state is RoundState.abandoned:
        return before[-1].attempt + 1
    if number != last + 1:
        raise RoundError(
            "round-number",
            f"rounds are numbered without gaps: after round {last} comes {last + 1}, or {last} "
            f"once more where it was abandoned; not {number}",
        )
    return 1


def check_start(connection: Connection, plan: Plan) -> None:
    """Refuse a plan that starts from no release of ours.

    Raises:
        InputError: ``no-such-release`` or ``release-withdrawn``.
        MismatchError: ``wrong-release``.
    """
    start = checked_release(connection, plan.release)
    if (start.state_digest, start.base, start.frame) != (plan.state, plan.base, plan.frame):
        raise MismatchError(
            "wrong-release",
            f"the plan starts from another release {plan.release} than the registry's: state "
            f"{plan.state[:12]}…, not {start.state_digest[:12]}…",
        )


def subject_of(number: int) -> str:
    """Return how the audit names a round."""
    return f"round {number}"
