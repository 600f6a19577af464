"""Nodes that stay online and give no answer."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message

from simulations.inprocess import InProcessGrid

__all__ = ["BRIEF_S", "Mute", "asked"]

# What rounds and answers take in simulated time: a look a second, no more.
BRIEF_S = 10.0


class Mute:
    """Nodes that stay online and do not answer, by partition and kind of message."""

    def __init__(self) -> None:
        self.kinds: set[tuple[int, str]] = set()
        self.to: dict[str, tuple[int, str]] = {}

    def grid(self, base: type[InProcessGrid]) -> type[InProcessGrid]:
        mute = self

        class Muted(base):  # type: ignore[misc, valid-type]
            def push_messages(self, messages: Iterable[Message]) -> list[str]:
                made = list(messages)
                ids: list[str] = super().push_messages(made)
                for each, message in zip(ids, made, strict=True):
                    mute.to[each] = (self.partition_of(message), message.metadata.message_type)
                return ids

            def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
                speak = {each for each in message_ids if mute.to[each] not in mute.kinds}
                found: list[Message] = super().pull_messages(speak)
                return found

        return Muted


def asked(mute: Mute, partition: int, kind: str) -> list[tuple[int, str]]:
    return [each for each in mute.to.values() if each == (partition, kind)]
