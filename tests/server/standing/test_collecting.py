from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message

from simulations.inprocess import InProcessGrid
from tests.server.standing.standing import Fleet


def test_a_message_that_was_answered_is_not_asked_for_again(quick: Fleet) -> None:
    answered: set[str] = set()
    again: list[str] = []

    class Forgetful(InProcessGrid):
        """A grid that, as a SuperLink, has nothing left of what it handed over."""

        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            ids = set(message_ids)
            again.extend(ids & answered)
            found = super().pull_messages(ids)
            answered.update(str(each.metadata.reply_to_message_id) for each in found)
            return found

    quick.policy(rounds=2)
    quick.start(Forgetful)
    quick.released(2)
    assert len(answered) >= 6
    assert again == []
    assert quick.events("round.lost") == []
