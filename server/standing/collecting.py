"""Collects the answers of one round: pushes its plan, keeps each answer at once, waits in bounds.

A plan is pushed to a device when its node is online, and its message is pulled only then: pulling
while a node is away deletes the message. One that got lost with its node is pushed again under the
same plan id, and the device's outbox answers with the same bytes. What was accepted or refused is
in the registry before anything else happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from flwr.app import Message

from fleet.errors import InputError
from fleet.federate.admission import Reason
from fleet.federate.proof import with_plan_proof, with_proof
from fleet.federate.wire import Payload, encode_plan
from server import coordinator as c
from server.asking import POLL_S, TTL_SLACK_S, Asking, sent
from server.flower import ErrorCode
from server.messages import Traffic
from server.registry import Registry
from server.registry.records import RefusalRow
from server.rounds import event_of
from server.standing.nodes import Roster
from server.standing.world import World

__all__ = ["ACTOR", "LARGEST_PUSHES", "PUSH_AGAIN_S", "Collection"]

ACTOR = "service"
LARGEST_PUSHES = 20
"""How often one plan is pushed to one device."""
PUSH_AGAIN_S = 15.0
"""Pause before a plan that got lost is pushed to its device again."""
# The message, not the device, is gone; the device may not even have seen it.
_LOST = (
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.CLIENT_APP_CRASHED,
)


@dataclass
class Collection:
    """One open round on its way to its close.

    Args:
        state: A coordinator's state that collects.
        asking: Makes messages, and hears what comes too late.
        roster: Who is behind which node.
        registry: Where answers are kept.
        world: Clock, waiting, words.
        look: Called at every wait; True ends the collection with the round open.

    Attributes:
        traffic: What was sent and received since this process took the round up.
        live: Devices by the ids of the messages that may still be answered.
    """

    state: c.State
    asking: Asking
    roster: Roster
    registry: Registry
    world: World
    look: Callable[[], bool]
    traffic: Traffic = field(default_factory=Traffic)
    live: dict[str, str] = field(default_factory=dict)
    _answered: dict[str, str] = field(default_factory=dict)
    _pushes: dict[str, int] = field(default_factory=dict)
    _again: dict[str, float] = field(default_factory=dict)
    _spent: dict[str, int] = field(default_factory=dict)
    _looked_at: float = float("-inf")
    _began: tuple[float, float] = field(init=False)

    def __post_init__(self) -> None:
        # Wall time says how much of the deadline is gone; from here on time only goes forward.
        wall = max(self.world.clock(), self.state.opened_at)
        self._began = wall, self.world.now()

    def now(self) -> float:
        """Return seconds since the epoch on this round's clock."""
        wall, monotonic = self._began
        return wall + self.world.now() - monotonic

    def run(self) -> tuple[c.State, tuple[c.Effect, ...]]:
        """Collect until the coordinator closes the round, or ``look`` ends it.

        Returns:
            The state after the close with its effects; a state that collects, without effects,
            where ``look`` ended it.
        """
        effects = self._take(c.Tick(self.now()))  # a round that is resumed may be over already
        while self._collects():
            self._push()
            replies = self.asking.pull(self._awake())
            late = [c.Late(self.now(), e.device, e.detail) for e in self.asking.overdue.take()]
            heard = [event for event in map(self._event_of, replies) if event is not None]
            for event in (*late, *heard):
                if isinstance(event, c.Late | c.Answered):
                    self.roster.alive(event.device)
            effects = self._take_all([*self._barred(), *late, *heard, c.Tick(self.now())])
            if self._collects() and self._looks(waits=not replies):
                return self.state, ()
        self._flush()
        plan_round = self.state.round
        self.asking.overdue.expect(self.live, plan_round, self.world.now(), TTL_SLACK_S)
        return self.state, effects

    def _take_all(self, events: Iterable[c.Event]) -> tuple[c.Effect, ...]:
        for event in events:
            if effects := self._take(event):
                return effects
        return ()

    def _looks(self, *, waits: bool) -> bool:
        """Look up from the round, at least every so often; wait where there is nothing to do."""
        now = self.world.now()
        if not waits and now - self._looked_at < POLL_S:
            return False
        self._looked_at = now
        self._flush()
        if self.look():
            return True
        if waits:
            self.asking.let_pass(POLL_S)
        self.roster.refresh()
        return False

    def _barred(self) -> list[c.Event]:
        """Give up on devices that were quarantined or revoked since they were asked."""
        barred = self.roster.barred
        return [
            c.Failed(self.now(), device, f"{device} is {barred[device]}", Reason.unselected)
            for device in sorted(self.state.unanswered & barred.keys())
        ]

    def _collects(self) -> bool:
        return self.state.phase is c.Phase.collecting

    def _awake(self) -> set[str]:
        """Return the messages whose nodes are online.

        What was answered is gone from Flower: asking for it again is answered with an error at
        once, so that there would be nothing to wait for and the SuperLink no rest.
        """
        self.roster.peek()
        here = self.roster.here()
        return {message for message, device in self.live.items() if device in here}

    def _push(self) -> None:
        """Push the plan to the devices that have not answered, are online and have no message."""
        plan, now = self.state.plan, self.world.now()
        assert plan is not None
        here, under_way = self.roster.here(), set(self.live.values())
        due = [
            device
            for device in sorted(self.state.unanswered - under_way)
            if device in here and now >= self._again.get(device, now)
        ]
        if not due:
            return
        start = self.state.release
        signature = self.registry.releases.get(start.number).signature
        payload = with_proof(encode_plan(plan, start.state), start, signature)
        if self.world.sign is not None:
            payload = with_plan_proof(payload, self.world.sign.plan)
        left_s = max(1.0, self.state.opened_at + plan.deadline_s - self.now())
        nodes = [here[device] for device in due]
        messages = self.asking.messages(payload, nodes, "train", str(plan.round), left_s)
        self._count(due, messages, payload)
        pushed = sent(list(self.asking.grid.push_messages(messages)), due)
        self.live |= pushed
        for device in due:
            self._pushes[device] = self._pushes.get(device, 0) + 1
        for device in set(due) - set(pushed.values()):
            self._lost(device, "the message could not be sent")
        self.world.say("round.pushed", round=plan.round, plan=plan.id, devices=len(pushed))

    def _count(self, devices: list[str], messages: list[Message], payload: Payload) -> None:
        weights = [self.world.weigh(message) for message in messages]
        self.traffic.messages_down += len(messages)
        self.traffic.bytes_down += payload.array.nbytes * len(messages)
        self.traffic.wire_bytes_down += sum(weights)
        # Before they are sent: a budget is kept by counting too much, if anything.
        self.registry.observations.spend(dict(zip(devices, weights, strict=True)))

    def _event_of(self, reply: Message) -> c.Event | None:
        message = str(reply.metadata.reply_to_message_id)
        device = self.live.pop(message, None)
        if device is not None and not (reply.has_error() and reply.error.code in _LOST):
            self._answered[message] = device
        device = device or self._answered.get(message)
        if device is None:
            return None
        if reply.has_error() and reply.error.code in _LOST:
            return self._lost(device, str(reply.error.reason))
        before = self.traffic.wire_bytes_up
        event = event_of(device, reply, self.now(), self.traffic, self.world.weigh)
        more = self.traffic.wire_bytes_up - before
        self._spent[device] = self._spent.get(device, 0) + more
        return event

    def _lost(self, device: str, why: str) -> c.Event | None:
        if self._pushes.get(device, 0) >= LARGEST_PUSHES:
            return c.Failed(self.now(), device, f"{why}; pushed {LARGEST_PUSHES} times")
        self._again[device] = self.world.now() + PUSH_AGAIN_S
        self.world.say("round.lost", round=self.state.round, device=device, why=why)
        return None

    def _flush(self) -> None:
        spent, self._spent = self._spent, {}
        self.registry.observations.spend(spent)

    def _take(self, event: c.Event) -> tuple[c.Effect, ...]:
        """Take an event; what it accepts or refuses is durable when this returns."""
        before = self.state
        after, effects = c.step(before, event)
        if isinstance(event, c.Answered):
            new = after.accepted.keys() - before.accepted.keys()
            try:
                for device in new:
                    self._keep(after, device, event.payload)
            except InputError as error:  # quarantined or revoked since the round was opened
                refusal = c.Failed(event.now, event.device, error.message, Reason.unselected)
                return self._take(refusal)
        if not effects:
            self._refuse(before, after)
        self.state = after
        return effects

    def _keep(self, state: c.State, device: str, payload: Payload) -> None:
        admitted = state.accepted[device]
        self.registry.rounds.accept(state.round, admitted, payload, actor=ACTOR)
        values = {"round": state.round, "device": device, "weight": admitted.weight}
        self.world.say("update.accepted", **values, norm=round(admitted.norm, 6))

    def _refuse(self, before: c.State, after: c.State) -> None:
        for each in after.refused[len(before.refused) :]:
            self.registry.rounds.refuse(after.round, self.row_of(each), actor=ACTOR)
            self._tell(after.round, each)
        for each in after.late[len(before.late) :]:
            row = self.row_of(each, earlier=True)
            self.registry.rounds.refuse(after.round, row, actor=ACTOR)
            self._tell(after.round, each)

    def _tell(self, number: int, refusal: c.Refusal) -> None:
        values = {"round": number, "device": refusal.device, "reason": refusal.reason.value}
        self.world.say("update.refused", **values, detail=refusal.detail)

    def row_of(self, refusal: c.Refusal, *, earlier: bool = False) -> RefusalRow:
        """Return a refusal as the registry keeps it."""
        return RefusalRow(
            device=refusal.device,
            reason=refusal.reason,
            detail=refusal.detail,
            at_s=self.now(),
            earlier=earlier,
        )
