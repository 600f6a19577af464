"""The fleet that asks a device, with the server's own coordinator behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fleet.adapt.base import Base
from fleet.federate.admission import Reason
from fleet.federate.records import Plan
from fleet.federate.releases import Release
from fleet.federate.wire import Payload, encode_plan
from server import coordinator as c
from tests.clients.agent.answering.devices import NAME, release_message
from tests.clients.agent.serving.factories import (
    chain_of,
    make_base,
    probabilities_of,
    raw_windows,
)
from tests.server.coordinating import make_rules, make_task, reasons, record_of, take

__all__ = ["Fleet"]

OTHER = "cellar-1"


@dataclass(frozen=True)
class Fleet:
    """What the server asks of the device: train from release 1, then serve release 2."""

    base: Base = field(default_factory=make_base)

    @cached_property
    def releases(self) -> list[Release]:
        return chain_of(self.base, 2, step=0.02)  # small enough for the probe

    @cached_property
    def answers(self) -> list[NDArray[np.float32]]:
        """What each release answers to four windows, ``(4, classes)``."""
        windows = raw_windows(4)
        return [probabilities_of(self.base, one, windows).numpy() for one in self.releases]

    @cached_property
    def round(self) -> c.State:
        """The round, waiting for two devices."""
        layout = self.releases[1].state.layout
        task = make_task(layout=layout, rank=2, batch=8, epochs=2, learning_rate=0.05)
        state = c.begin(make_rules(), task, self.releases[1])
        return take(state, c.Fleet(0.0, (NAME, OTHER)), c.Pushed(0.0))[0]

    @property
    def plan(self) -> Plan:
        assert self.round.plan is not None
        return self.round.plan

    @property
    def train(self) -> Payload:
        return encode_plan(self.plan, self.releases[1].state)

    @property
    def release(self) -> Payload:
        """Release 2, to serve it or to judge it."""
        return release_message(self.releases[2])

    def released_with(self, answers: list[Payload]) -> str:
        """Feed a device's answers to the round; return the digest of what it releases.

        The first must be admitted, and every other one refused as a duplicate.
        """
        sent = [c.Answered(float(at), NAME, one) for at, one in enumerate(answers, 1)]
        state, _ = take(self.round, *sent)
        assert list(state.accepted) == [NAME]
        assert [one.reason for one in state.refused] == [Reason.duplicate] * (len(answers) - 1)
        closed, effects = take(state, c.Failed(50.0, OTHER, "gone"))
        record = record_of(effects)
        assert [one["device"] for one in record.accepted] == [NAME]
        assert reasons(record)[OTHER] == Reason.failed
        assert closed.phase is c.Phase.aggregating
        return closed.release.digest
