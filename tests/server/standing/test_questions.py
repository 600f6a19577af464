from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from fleet.federate.wire import Payload
from server.standing.questions import Questions


class Talkative:
    """Everybody has answered; each look brings one reply and takes .6 seconds."""

    def __init__(self) -> None:
        self.grid = SimpleNamespace(push_messages=lambda messages: [str(m) for m in messages])
        self.looks = 0

    def now(self) -> float:
        return 0.6 * self.looks

    def messages(self, payload: Payload, nodes: list[int], *_: Any) -> list[int]:
        return nodes

    def pull(self, ids: set[str]) -> list[SimpleNamespace]:
        self.looks += 1
        metadata = SimpleNamespace(reply_to_message_id=min(ids))
        return [SimpleNamespace(metadata=metadata, has_error=lambda: False)]


def test_a_look_ends_in_time_however_much_is_there() -> None:
    asking = Talkative()
    questions = Questions(asking, "query", 5.0)  # type: ignore[arg-type]
    questions.put(Payload(np.zeros(0, np.uint8), {}), {f"d{n}": n for n in range(5)})
    assert len(questions.heard(range(5))) == 2
    assert asking.looks == 2
    assert len(questions.under_way()) == 3
