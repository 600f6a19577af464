"""Answers that had not come when their round closed: listened for, recorded, never used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message

from server.events import Late

__all__ = ["Overdue"]

# Answers that are listened for at a time, and that wait to be recorded.
LARGEST_OVERDUE = 10_000


@dataclass(frozen=True)
class _Expected:
    device: str
    round: int
    closed_at: float
    until: float


@dataclass
class Overdue:
    """Listens for the answers to closed rounds until their messages expire."""

    _expected: dict[str, _Expected] = field(default_factory=dict)
    _late: list[Late] = field(default_factory=list)

    def expect(self, asked: Mapping[str, str], number: int, now: float, for_s: float) -> None:
        """Listen for answers to a round that has just closed.

        Args:
            asked: Devices by the ids of the messages that they have not answered.
            number: The round.
            now: When it closed.
            for_s: How long the messages live on.
        """
        for message_id, device in asked.items():
            if len(self._expected) < LARGEST_OVERDUE:
                self._expected[message_id] = _Expected(device, number, now, now + for_s)

    def listen(self, pull: Callable[[Iterable[str]], Iterable[Message]], now: float) -> None:
        """Take what has come.

        Args:
            pull: Returns the replies to messages that are there.
            now: Monotonic seconds.
        """
        for message_id in [i for i, each in self._expected.items() if now >= each.until]:
            del self._expected[message_id]
        if not self._expected:
            return
        for reply in pull(self._expected.keys()):
            found = self._expected.pop(str(reply.metadata.reply_to_message_id), None)
            if found is not None and not reply.has_error() and len(self._late) < LARGEST_OVERDUE:
                after = now - found.closed_at
                detail = f"answered round {found.round}, {after:g} s after it had closed"
                self._late.append(Late(now, found.device, detail))

    def take(self) -> Iterable[Late]:
        """Return what came, for the coordinator, once."""
        late, self._late = self._late, []
        return late
