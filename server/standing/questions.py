"""Questions under way: pushed, heard of later, each with a deadline of its own; nothing here waits.

A node that is online and gives no answer costs nobody else any time. Its question is *overdue*
after the limit, once; an answer that comes later still is heard until the message expires.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message

from fleet.federate.wire import Payload
from server.asking import LARGEST_QUESTION, TTL_SLACK_S, Asking, sent
from server.flower import ErrorCode
from server.pulling import LOOK_FOR_S

__all__ = ["Question", "Questions"]

# Nobody answered: the message is gone, with its node or by its age.
_LOST = (
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
)


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        name: Who was asked, as the asker knows it.
        node: The node.
        about: What it was about, e.g. a release's number.
        until: When an answer is overdue, monotonic seconds; infinity once that was said.
        expires: When its message expires.
    """

    name: str
    node: int
    about: int
    until: float
    expires: float


@dataclass
class Questions:
    """Questions of one kind.

    Args:
        asking: Makes messages and carries them.
        kind: Type of the messages.
        limit_s: How long a node may take to answer.
    """

    asking: Asking
    kind: str
    limit_s: float
    _open: dict[str, Question] = field(default_factory=dict)
    _lost: list[Question] = field(default_factory=list)

    def under_way(self) -> dict[str, Question]:
        """Return the questions that are neither answered nor overdue, by name."""
        return {each.name: each for each in self._open.values() if each.until < float("inf")}

    def put(self, payload: Payload, to: Mapping[str, int], about: int = 0) -> list[str]:
        """Ask nodes, by name; return the names that were asked.

        With 1,000 under way the rest is not asked now; what could not be sent is overdue at once.
        """
        asked = list(to)[: max(0, LARGEST_QUESTION - len(self.under_way()))]
        if not asked:
            return []
        now, limit = self.asking.now(), self.limit_s
        nodes = [to[name] for name in asked]
        messages = self.asking.messages(payload, nodes, self.kind, self.kind, limit)
        made = {n: Question(n, to[n], about, now + limit, now + limit + TTL_SLACK_S) for n in asked}
        pushed = sent(list(self.asking.grid.push_messages(messages)), asked)
        self._open |= {message: made[name] for message, name in pushed.items()}
        self._lost += [made[name] for name in set(asked) - set(pushed.values())]
        return asked

    def heard(self, online: Collection[int]) -> list[tuple[Question, Message]]:
        """Return what was answered since, of nodes that are online.

        A message that is pulled while its node is away is deleted with its answer. With much to
        read it ends after :data:`~server.pulling.LOOK_FOR_S`, or one pull, whichever is longer.
        """
        found: list[tuple[Question, Message]] = []
        until = self.asking.now() + LOOK_FOR_S
        while here := {i for i, each in self._open.items() if each.node in online}:
            replies = self.asking.pull(here)
            for reply in replies:
                question = self._open.pop(str(reply.metadata.reply_to_message_id), None)
                if question is None:
                    continue
                if reply.has_error() and reply.error.code in _LOST:
                    self._lost.append(question)
                else:
                    found.append((question, reply))
            # What is behind it is heard at the next look: meanwhile the service has a beat to give.
            if not replies or self.asking.now() >= until:
                break
        return found

    def overdue(self) -> list[Question]:
        """Return the questions that nobody answered in time, each once; forget what expired."""
        now = self.asking.now()
        lost = [each for each in self._lost if each.until < float("inf")]
        self._lost = []
        for message, each in list(self._open.items()):
            if now >= each.until:
                lost.append(each)
                self._open[message] = replace(each, until=float("inf"))
            if now >= each.expires:
                del self._open[message]
        return lost

    def keep(self, names: Collection[str]) -> None:
        """Forget the questions to everybody else."""
        self._open = {i: each for i, each in self._open.items() if each.name in names}
