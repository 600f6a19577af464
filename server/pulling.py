"""Reads replies so that no device holds up another: within bounds, and never waiting for one.

Of a reply that a device has announced, whatever is there is read, one object at a time; what is
missing is looked for again at the next look. One that does not come in time, is too large or is no
message becomes an error reply, so that its device has answered and everybody else goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from server.flower import ARRAY_CHUNK_BYTES
from server.flower_replies import Announced, Unreadable, superlink_replies

__all__ = [
    "HELD_BYTES",
    "LEAST_REPLY_BYTES",
    "LOOK_FOR_S",
    "REPLY_OBJECTS",
    "REPLY_S",
    "REPLY_TIMES",
    "UNREADABLE",
    "Replies",
    "SuperLinkSide",
    "replies_of",
]

UNREADABLE = "unreadable-reply"
"""How the reason of such an error reply begins."""
REPLY_S = 60.0
"""How long the objects of an announced reply may take to come."""
LOOK_FOR_S = 1.0
"""How long one look reads replies; the rest has to wait for the next."""
LEAST_REPLY_BYTES = 2**20
"""Bytes that any reply may have."""
REPLY_TIMES = 2
"""A reply may have so many times the bytes of the largest array that was sent: an update has the
layout of its plan."""
REPLY_OBJECTS = 64
"""Objects that any reply may have; an update of one chunk has six."""
HELD_BYTES = 64 * 2**20
"""Bytes of all replies together of which a part is there and a part is not."""


class SuperLinkSide(Protocol):
    """Where replies are announced and read; :class:`server.flower_replies.SuperLinkReplies`."""

    def announced(self, ids: Iterable[str], most: int) -> list[Announced]:
        """Return what has been announced since, each once; count ``most`` objects of each."""
        ...

    def fetch(self, name: str) -> bytes | None:
        """Return an object; None while it has not come; raises :class:`Unreadable`."""
        ...

    def done(self, announced: Announced) -> None:
        """Forget a reply."""
        ...

    def whole(self, announced: Announced, objects: Mapping[str, bytes], most: int) -> Message:
        """Make the message of all its objects; raises :class:`Unreadable`."""
        ...

    def refused(self, announced: Announced, reason: str) -> Message:
        """Make the error reply that stands for it."""
        ...


@dataclass
class _Reading:
    announced: Announced
    until: float
    left: list[str]
    """Objects still to be fetched, the next one last."""
    got: dict[str, bytes] = field(default_factory=dict)
    held: int = 0


@dataclass
class Replies:
    """Reads the replies to messages.

    Args:
        grid: Any Flower grid.
        now: Monotonic seconds, real or simulated.
        side: The SuperLink behind the grid; None where the grid has no wire, and reads by itself.
    """

    grid: Grid
    now: Callable[[], float]
    side: SuperLinkSide | None
    _largest_sent: int = 0
    _readings: dict[str, _Reading] = field(default_factory=dict)
    _held: int = 0

    @property
    def most_bytes(self) -> int:
        """Bytes that a reply may have."""
        return max(LEAST_REPLY_BYTES, REPLY_TIMES * self._largest_sent)

    @property
    def most_objects(self) -> int:
        """Objects that a reply may have."""
        return REPLY_OBJECTS + self.most_bytes // ARRAY_CHUNK_BYTES

    def sending(self, array_bytes: int) -> None:
        """Note the bytes of an array that is sent; a reply may be as large, and more."""
        self._largest_sent = max(self._largest_sent, array_bytes)

    def pull(self, ids: Iterable[str]) -> list[Message]:
        """Return the replies to messages that are there; never waits for one.

        What has been announced and is not whole is no reply yet. A reply that cannot be read is an
        error reply with a reason that begins with ``unreadable-reply``.

        Args:
            ids: Messages whose replies are wanted; of others nothing is read.
        """
        if self.side is None:
            return list(self.grid.pull_messages(ids))
        wanted, now = set(ids), self.now()
        if fresh := wanted - self._readings.keys():
            for each in self.side.announced(fresh, self.most_objects):
                if each.answers in fresh:  # else nobody could have asked for it
                    left = list(reversed(each.objects))
                    self._readings[each.answers] = _Reading(each, now + REPLY_S, left)
        self._forget(self.side, wanted, now)
        return self._look(self.side, wanted)

    def _look(self, side: SuperLinkSide, wanted: Set[str]) -> list[Message]:
        found: list[Message] = []
        until = self.now() + LOOK_FOR_S
        for message in [each for each in self._readings if each in wanted]:
            if (now := self.now()) >= until:
                break
            reading = self._taken(message)
            try:
                if not self._read(side, reading, now):
                    self._readings[message] = reading  # behind the others
                    self._held += reading.held
                    continue
                reply = side.whole(reading.announced, reading.got, self.most_bytes)
            except Unreadable as error:
                reply = side.refused(reading.announced, f"{UNREADABLE}: {error}")
            side.done(reading.announced)
            found.append(reply)
        return found

    def _read(self, side: SuperLinkSide, reading: _Reading, now: float) -> bool:
        """Read what is there of a reply; tell whether that is all of it."""
        if reading.announced.nodes > self.most_objects:
            raise Unreadable(f"it has more than {self.most_objects} objects")
        while reading.left:
            name = reading.left.pop()
            content = side.fetch(name)
            if content is None:
                reading.left.insert(0, name)  # another one next time, which may be there
                self._check_wait(reading, now)
                return False
            reading.got[name] = content
            reading.held += len(content)
            if reading.held > self.most_bytes:
                raise Unreadable(f"it has more than {self.most_bytes} bytes")
        return True

    def _check_wait(self, reading: _Reading, now: float) -> None:
        if now >= reading.until:
            of = f"{len(reading.left)} of {len(reading.announced.objects)} objects"
            raise Unreadable(f"{of} had not come {REPLY_S:g} s after it was announced")
        if self._held + reading.held > HELD_BYTES:
            raise Unreadable(f"more than {HELD_BYTES} bytes wait for the rest of their replies")

    def _forget(self, side: SuperLinkSide, wanted: Set[str], now: float) -> None:
        """Forget the readings whose time is over and that nobody asks for any more."""
        over = [m for m, each in self._readings.items() if now >= each.until and m not in wanted]
        for message in over:
            side.done(self._taken(message).announced)

    def _taken(self, message: str) -> _Reading:
        reading = self._readings.pop(message)
        self._held -= reading.held
        return reading


def replies_of(grid: Grid, now: Callable[[], float]) -> Replies:
    """Return what reads the replies of a grid.

    Args:
        grid: Any Flower grid.
        now: Monotonic seconds, real or simulated.
    """
    return Replies(grid, now, superlink_replies(grid))
