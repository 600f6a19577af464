"""Which messages were taken, and when the broker may be told so; no connection, no store.

A broker sends again what it has no acknowledgement of, also what was kept just before a power cut.
So the digests of the newest messages are kept in the transaction that keeps their samples. How many
it may repeat is bounded here: acknowledgements may be lost on their way, and mosquitto does not
hold MQTT's own bound after a reconnection. So after ``AT_RISK`` messages the broker must confirm
that it has heard, by its answer to a later packet, before another message is taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

__all__ = ["IN_FLIGHT", "Ledger", "digest_of"]

IN_FLIGHT = 256
"""Messages that the broker may send ahead of their acknowledgements (MQTT 5's Receive Maximum)."""
AT_RISK = 256
"""Messages taken without a proof that the broker heard of it."""
DIGEST_BYTES = 8
COMMIT_MESSAGES = IN_FLIGHT // 2  # before the broker has to stop
COMMIT_BYTES = 1 << 18
COMMIT_S = 1.0  # about as often as windows come; more would wear out a memory card
STALL_S = 0.02
STALL_PERIODS = 4.0


def digest_of(topic: str, payload: bytes) -> bytes:
    """Name a message by what it says and where.

    A sample carries its time, so two messages of one digest are one message sent twice, also when
    it was the sensor that did.
    """
    return hashlib.sha256(topic.encode() + b"\0" + payload).digest()[:DIGEST_BYTES]


class Ledger:
    """The messages between a broker and the store.

    - Acknowledged is only what :meth:`settle` was called for after it came.
    - Acknowledgements go out in the order in which messages came, each once per delivery.
    - A message that is sent again while it may be is known, also by a ledger made of ``recent``,
      provided that what is :attr:`full` is confirmed before the next message.

    Args:
        recent: What the last transaction kept, see :attr:`recent`.
        at_risk: How many messages may be taken without a confirmation.
    """

    def __init__(self, recent: bytes = b"", at_risk: int = AT_RISK) -> None:
        self._at_risk = at_risk
        self._recent = dict.fromkeys(_cut(recent))
        self._here = 0  # the newest of them, which this connection brought, unconfirmed
        self._waiting: list[int | None] = []
        self._bytes = 0
        self._oldest_s = self._newest_s = 0.0

    @property
    def recent(self) -> bytes:
        """Digests of the newest messages, ``16 × at_risk`` bytes at most; goes to the store."""
        return b"".join(self._recent)

    @property
    def full(self) -> bool:
        """Whether all must be settled, acknowledged and confirmed before the next message."""
        return self._here >= self._at_risk

    def __len__(self) -> int:
        """How many messages came since :meth:`settle`."""
        return len(self._waiting)

    def add(self, number: int | None, digest: bytes, size_bytes: int, now_s: float) -> bool:
        """Note a message.

        Args:
            number: The broker's, to acknowledge it by; None where it wants none (QoS 0).
            digest: See :func:`digest_of`.
            size_bytes: Of its payload.
            now_s: The time, on any clock that only goes forward.

        Returns:
            Whether it is new; what is not holds no sample that was not taken.
        """
        new = digest not in self._recent
        self._recent.pop(digest, None)
        self._recent[digest] = None
        self._here = min(self._here + 1, len(self._recent))
        # A broker repeats in order, so what is new ends the repetition: what this connection did
        # not bring is never brought again, and may be forgotten.
        while new and len(self._recent) > 2 * self._at_risk:
            del self._recent[next(iter(self._recent))]
        if not self._waiting:
            self._oldest_s = now_s
        self._waiting.append(number)
        self._newest_s = now_s
        self._bytes += size_bytes
        return new

    def due(self, now_s: float) -> bool:
        """Tell whether it is time to keep what came.

        Also when messages ceased to come much longer than they had been apart: a broker with a
        lower limit of its own waits for acknowledgements then.
        """
        count = len(self._waiting)
        if not count:
            return False
        if count >= COMMIT_MESSAGES or self._bytes >= COMMIT_BYTES:
            return True
        if now_s - self._oldest_s >= COMMIT_S:
            return True
        if count == 1:
            return False
        apart_s = (self._newest_s - self._oldest_s) / (count - 1)
        return now_s - self._newest_s > max(STALL_S, STALL_PERIODS * apart_s)

    def settle(self) -> tuple[int, ...]:
        """Return what may be acknowledged, in order, now that all of it is on the disk."""
        settled = tuple(number for number in self._waiting if number is not None)
        self._waiting, self._bytes = [], 0
        return settled

    def confirm(self) -> None:
        """Note that the broker has heard every acknowledgement so far; nothing may wait."""
        self._here = 0

    def disconnect(self) -> None:
        """Forget the broker's numbers: on the next connection they name other deliveries."""
        self._waiting, self._bytes, self._here = [], 0, 0


def _cut(recent: bytes) -> Iterable[bytes]:
    whole = len(recent) - len(recent) % DIGEST_BYTES
    return (recent[at : at + DIGEST_BYTES] for at in range(0, whole, DIGEST_BYTES))
