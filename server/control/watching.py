"""Follows the audit as it grows; both ends of the seam watch by it.

Nothing is buffered beyond one page: a slow reader is served from the registry when it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from server.control.seam import Event
from server.control.verbs.fleet import Fleet
from server.control.verbs.shown import utc
from server.registry.records import AuditRow

__all__ = ["HEARTBEAT_S", "LARGEST_PAGE", "LONGEST_WATCH_S", "POLL_S", "follow"]

POLL_S = 0.5
"""Between two looks at the audit."""
HEARTBEAT_S = 10.0
"""Between two signs of life while nothing happens."""
LONGEST_WATCH_S = 3600.0
LARGEST_PAGE = 100


def follow(
    fleet: Fleet,
    after: int | None,
    limit_s: float,
    *,
    now: Callable[[], float],
    wait: Callable[[float], bool],
) -> Iterator[Event]:
    """Yield the rows of the audit after one that is known, as they come.

    Args:
        fleet: Whose.
        after: Number of that row; None for the last that there is.
        limit_s: Seconds until it ends, at most :data:`LONGEST_WATCH_S`; 0 for that.
        now: Monotonic seconds.
        wait: Lets seconds pass; returns True when nobody listens any more.
    """
    began = heard = now()
    ends = began + min(limit_s or LONGEST_WATCH_S, LONGEST_WATCH_S)
    last = fleet.registry.audit.head().seq if after is None else after
    yield _alive(fleet, last)
    while True:
        for row in _after(fleet, last):
            last, heard = row.seq, now()
            yield _event(row)
        left = ends - now()
        if left <= 0 or wait(min(POLL_S, left)):
            return
        if now() - heard >= HEARTBEAT_S:
            heard = now()
            yield _alive(fleet, last)


def _after(fleet: Fleet, last: int) -> Iterator[AuditRow]:
    """Yield all rows after one; they have no gaps, so a page's end says where it begins."""
    while True:
        end = last + LARGEST_PAGE + 1
        page = fleet.registry.audit.rows(before=end, newest=LARGEST_PAGE)
        fresh = [row for row in page if row.seq > last]
        if not fresh:
            return
        yield from fresh
        last = fresh[-1].seq


def _alive(fleet: Fleet, last: int) -> Event:
    return Event(last, str(utc(fleet.clock())))


def _event(row: AuditRow) -> Event:
    return Event(row.seq, str(utc(row.at_s)), row.actor, row.verb, row.subject, row.detail)
