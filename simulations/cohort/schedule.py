"""The schedule: when a message that waits is answered, by a trace, and whether it ever is.

A message has one next moment: when its answer sets out at the earliest, when it arrives, or when
the message expires. Answers are made only once somebody asks for one that is under way; then those
that set out next are made with it, as many as one call of the fleet is for, and each is kept until
its own moment.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Iterable, Set
from dataclasses import dataclass

from flwr.app import Message

from simulations.traces.field import Field, Journey

__all__ = ["Delivery", "Errand", "Schedule"]

# Makes the answers of messages by their ids; returns each with its bytes on the wire.
Make = Callable[[list[str]], list[tuple[Message, int]]]


@dataclass(frozen=True)
class Errand:
    """A message to one device, as far as time is concerned.

    Args:
        partition: Whom it is for.
        goes_with: Messages with equal values are answered by one call.
        named: What tells it from every other message to that device, see ``Field.fate``.
        journey: Its way to the device and the work there.
    """

    partition: int
    goes_with: Hashable
    named: str
    journey: Journey


@dataclass(eq=False)
class _Waiting:
    errand: Errand
    doubled: bool
    sets_out: float
    answer: Message | None = None

    def expired(self, now: float) -> bool:
        return self.errand.journey.until <= now


@dataclass(frozen=True)
class Delivery:
    """What a pull hands over: an answer, twice where it is ``doubled``; None for an expired one."""

    message_id: str
    answer: Message | None
    doubled: bool


class Schedule:
    """Says which messages are answered now; not for use from many threads.

    Args:
        field: The devices.
        at_once: Most devices per call.
    """

    def __init__(self, field: Field, at_once: int) -> None:
        self._field = field
        self._at_once = at_once
        self._waiting: dict[str, _Waiting] = {}
        # Moments by message: (seconds, order of arrival here, id).
        self._setting_out: dict[Hashable, list[tuple[float, int, str]]] = {}
        self._coming: list[tuple[float, int, str]] = []
        # What has come and nobody has asked for yet, in the order of its coming.
        self._here: dict[str, None] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._waiting

    def add(self, message_id: str, errand: Errand) -> None:
        """Take a message."""
        fate, sets_out = self._field.fate(errand.partition, errand.named), math.inf
        if not fate.lost:
            sets_out = self._field.answers_at(errand.partition, errand.journey)
        self._waiting[message_id] = _Waiting(errand, fate.doubled, sets_out)
        earliest = sets_out + self._field.class_of(errand.partition).latency_s
        self._count += 1
        if earliest < errand.journey.until:
            group = self._setting_out.setdefault(errand.goes_with, [])
            heapq.heappush(group, (earliest, self._count, message_id))
        else:
            heapq.heappush(self._coming, (errand.journey.until, self._count, message_id))

    def forget_expired(self, now: float) -> list[str]:
        """Forget messages that expired and that nobody asked for; return their ids."""
        gone = [i for i, waiting in self._waiting.items() if waiting.expired(now)]
        if gone:
            for message_id in gone:
                del self._waiting[message_id]
                self._here.pop(message_id, None)
            for key, group in list(self._setting_out.items()):
                left = [each for each in group if each[2] in self._waiting]
                heapq.heapify(left)
                self._setting_out[key] = left
                if not left:
                    del self._setting_out[key]
        return gone

    def pull(self, wanted: Set[str], now: float, make: Make) -> list[Delivery]:
        """Hand over what of ``wanted`` has come, ``at_once`` messages at most, making answers.

        Args:
            wanted: Ids of messages.
            now: Simulated seconds.
            make: Called with ids whose answers are to be made, together.
        """
        while True:
            self._note_what_came(now)
            found = self._here_of(wanted)
            if found:
                return [self._deliver(each, now) for each in found]
            group = self._due_group(wanted, now)
            if group is None:
                return []
            self._make_some(group, wanted, now, make)

    def _note_what_came(self, now: float) -> None:
        while self._coming and self._coming[0][0] <= now:
            message_id = heapq.heappop(self._coming)[2]
            if message_id in self._waiting:
                self._here[message_id] = None

    def _here_of(self, wanted: Set[str]) -> list[str]:
        found: list[str] = []
        for message_id in self._here:
            if message_id in wanted:
                found.append(message_id)
                if len(found) == self._at_once:
                    break
        return found

    def _deliver(self, message_id: str, now: float) -> Delivery:
        del self._here[message_id]
        waiting = self._waiting.pop(message_id)
        answer = None if waiting.expired(now) else waiting.answer
        return Delivery(message_id, answer, waiting.doubled and answer is not None)

    def _due_group(self, wanted: Set[str], now: float) -> Hashable | None:
        """Return the group of the earliest due message that is wanted, if there is one."""
        due: list[tuple[tuple[float, int, str], Hashable]] = []
        for key, group in self._setting_out.items():
            first = group[0]
            if first[0] <= now and first[2] not in wanted:
                found = (each for each in group if each[0] <= now and each[2] in wanted)
                first = min(found, default=(math.inf, 0, ""))
            if first[0] <= now:
                due.append((first, key))
        return min(due, key=lambda pair: pair[0])[1] if due else None

    def _make_some(self, key: Hashable, wanted: Set[str], now: float, make: Make) -> None:
        """Make the answers of a group that set out next, and let them travel."""
        group = self._setting_out[key]
        chosen: list[tuple[int, str]] = []
        # What nobody wants is left until it expires.
        left: list[tuple[float, int, str]] = []
        while group and len(chosen) < self._at_once:
            moment, order, message_id = heapq.heappop(group)
            if message_id not in wanted:
                left.append((moment, order, message_id))
            elif self._waiting[message_id].expired(now):
                heapq.heappush(self._coming, (now, order, message_id))
            else:
                chosen.append((order, message_id))
        for each in left:
            heapq.heappush(group, each)
        if not group:
            del self._setting_out[key]
        if chosen:
            self._let_travel(chosen, make([message_id for _, message_id in chosen]))

    def _let_travel(
        self, chosen: Iterable[tuple[int, str]], answers: Iterable[tuple[Message, int]]
    ) -> None:
        for (order, message_id), (answer, size) in zip(chosen, answers, strict=True):
            waiting = self._waiting[message_id]
            waiting.answer = answer
            errand = waiting.errand
            arrives = waiting.sets_out + self._field.travels(errand.partition, size)
            heapq.heappush(self._coming, (min(arrives, errand.journey.until), order, message_id))
