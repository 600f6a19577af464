"""The shell of the coordinator: carries out its effects over a Flower Grid and feeds it events.

It holds no decision of its own. Every message has a ttl and a group id, every wait ends at a
deadline on the clock that is passed in, and every answer is turned into an event or a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray
from pydantic import ValidationError

from fleet.errors import MismatchError, RoundError, TooFewDevices
from fleet.federate.admission import Reason
from fleet.federate.records import DeviceStatus, problems_of
from fleet.federate.releases import Release, catch_up
from fleet.federate.wire import Payload, Scalar, encode_plan
from fleet.seeds import sample
from server import coordinator as c
from server.messages import Traffic, confusion_of, content_of, payload_of, weight_on_wire
from server.overdue import Overdue

__all__ = ["Shell", "Sink", "Traffic"]

# How long the shell lets pass between two looks at the grid.
POLL_S = 1.0
# A message outlives its round's deadline by this much, so that the deadline decides, not the ttl.
TTL_SLACK_S = 60.0
# A question to all devices goes to so many at a time, so that neither side holds ten thousand
# messages. Plans are not held back: their deadline runs from one push.
LARGEST_QUESTION = 1000


Confusions = Mapping[str, NDArray[np.int64]]


class Sink(Protocol):
    """Where a run's results go; each call returns only once they are durable."""

    def publish(self, record: c.RoundRecord, release: Release | None, traffic: Traffic) -> None:
        """Keep a round's record and its release."""
        ...

    def evaluated(self, release: Release, results: Confusions) -> None:
        """Keep the devices' confusion counts ``(classes, classes)`` under a release."""
        ...

    def answered(self, round_number: int, device: str, of: int) -> None:
        """Note that one more of ``of`` devices has answered; for progress only."""
        ...


@dataclass
class Shell:
    """Runs a coordinator state over a grid until it ends.

    Args:
        grid: Any Flower grid.
        now: Monotonic seconds, real or simulated.
        wait: Lets seconds pass.
        sink: Where results go.
        group: Prefix of the group id of every message, e.g. the method's name.
        weigh: Bytes of a message on the wire, all objects and framing.
        evaluate_every: Rounds between evaluations; the first and last are always evaluated.
        classes: Classes of the base; an evaluation of another number is left out. 0 takes any.
        evaluate_devices: Devices that evaluate, a seeded sample of those online; 0 for all.
        seed: Root seed of that sample.
        look_s: How long it lets pass between two looks for devices while there are too few.
    """

    grid: Grid
    now: Callable[[], float]
    wait: Callable[[float], None]
    sink: Sink
    group: str
    evaluate_every: int = 1
    weigh: Callable[[Message], int] = weight_on_wire
    classes: int = 0
    evaluate_devices: int = 0
    seed: int = 0
    nodes: dict[str, int] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    look_s: float = POLL_S
    overdue: Overdue = field(default_factory=Overdue)

    def run(self, state: c.State, *, evaluate_start: bool = True) -> c.State:
        """Run rounds until the coordinator ends the run; return its last state.

        Raises:
            RoundError: What the coordinator ended with, e.g. ``too-few-devices``.
        """
        started = not evaluate_start
        while state.phase is not c.Phase.ended:
            devices = self._discover(state.rules.wait_s)
            state, effects = c.step(state, c.Fleet(self.now(), devices))
            if not effects:
                self._pass(self.look_s)
                continue
            if not started and isinstance(effects[0], c.Push):
                self.evaluate(state.release, state.rules.deadline_s)
                started = True
            state = self._carry_out(state, effects)
        return state

    def judge(self, release: Release, rules: c.Rules) -> Confusions:
        """Find the devices, then evaluate a release, outside of any round."""
        until = self.now() + rules.wait_s
        while len(self._discover(rules.wait_s)) < rules.minimum and self.now() < until:
            self._pass(self.look_s)
        return self.evaluate(release, rules.deadline_s)

    def _carry_out(self, state: c.State, effects: tuple[c.Effect, ...]) -> c.State:
        """Carry out effects, and the effects of what they cause, until there are none."""
        traffic, queue = Traffic(), list(effects)
        while queue:
            effect = queue.pop(0)
            if isinstance(effect, c.End):
                if effect.error is not None:
                    raise self._explained(effect.error)
            elif isinstance(effect, c.Push):
                traffic = Traffic()
                state, more = self._round(state, effect, traffic)
                queue.extend(more)
            else:
                self.sink.publish(effect.record, effect.release, traffic)
                if effect.release is None:
                    continue
                last = effect.record.round >= state.rules.rounds
                if last or effect.record.round % self.evaluate_every == 0:
                    self.evaluate(effect.release, state.rules.deadline_s)
                state, more = c.step(state, c.Published(self.now()))
                queue.extend(more)
        return state

    def _explained(self, error: RoundError) -> RoundError:
        """Add to an error for want of devices why nodes that are there cannot be used."""
        if not isinstance(error, TooFewDevices) or not self.unusable:
            return error
        reasons = sorted(set(self.unusable.values()))[:3]
        hint = f"{len(self.unusable)} node(s) cannot be used: {'; '.join(reasons)}. {error.hint}"
        return TooFewDevices(error.code, error.message, hint)

    def _round(self, state: c.State, push: c.Push, traffic: Traffic) -> c.Step:
        """Push a plan and collect answers until the coordinator closes the round."""
        asked = self._push_plan(push, traffic)
        state, effects = c.step(state, c.Pushed(self.now()))
        missing = sorted(set(push.devices) - set(asked.values()))
        gone = [c.Failed(self.now(), d, "not reachable when the plan was sent") for d in missing]
        state, effects = c.step_all(state, gone)
        answered: dict[str, str] = {}
        while state.phase is c.Phase.collecting:
            replies = list(self.grid.pull_messages(asked.keys()))
            events = [*self.overdue.take()]
            for reply in replies:
                message_id = str(reply.metadata.reply_to_message_id)
                if message_id in asked:
                    answered[message_id] = asked.pop(message_id)
                    self.sink.answered(push.plan.round, answered[message_id], len(push.devices))
                if message_id in answered:
                    events.append(self._event_of(answered[message_id], reply, traffic))
            state, effects = c.step_all(state, events)
            if state.phase is c.Phase.collecting:
                if not replies:
                    self._pass(POLL_S)
                state, effects = c.step(state, c.Tick(self.now()))
        self.overdue.expect(asked, push.plan.round, self.now(), TTL_SLACK_S)
        return state, effects

    def _pass(self, seconds: float) -> None:
        """Let seconds pass, then hear what came too late."""
        self.wait(seconds)
        self.overdue.listen(self.grid, self.now())

    def _push_plan(self, push: c.Push, traffic: Traffic) -> dict[str, str]:
        payload = encode_plan(push.plan, push.release.state)
        reachable = [device for device in push.devices if device in self.nodes]
        messages = self._messages(
            payload,
            [self.nodes[device] for device in reachable],
            "train",
            str(push.plan.round),
            push.plan.deadline_s,
        )
        ids = list(self.grid.push_messages(messages))
        traffic.messages_down += len(messages)
        traffic.bytes_down += payload.array.nbytes * len(messages)
        traffic.wire_bytes_down += sum(map(self.weigh, messages))
        return _sent(ids, reachable)

    def _event_of(self, device: str, reply: Message, traffic: Traffic) -> c.Event:
        now = self.now()
        if reply.has_error():
            return c.Failed(now, device, f"{reply.error.reason or 'error'} ({reply.error.code})")
        try:
            payload = payload_of(reply.content)
        except MismatchError as error:
            return c.Failed(now, device, error.message, Reason.malformed)
        traffic.messages_up += 1
        traffic.bytes_up += payload.array.nbytes
        traffic.wire_bytes_up += self.weigh(reply)
        if "declined" in payload.config:
            detail = f"{payload.config['declined']!s}: {payload.config.get('detail', '')!s}"
            return c.Failed(now, device, detail, Reason.declined)
        return c.Answered(now, device, payload)

    def evaluate(self, release: Release, deadline_s: float) -> Confusions:
        """Let devices that are online judge a release; return the counts of those that did."""
        payload = catch_up(release)
        config: dict[str, Scalar] = {**payload.config, "method": release.method}
        present = self._discover(deadline_s)
        devices = sample(present, self.evaluate_devices, self.seed, "evaluation")
        to = {device: self.nodes[device] for device in devices}
        results: dict[str, NDArray[np.int64]] = {}
        question = Payload(payload.array, config)
        for device, reply in self._ask(question, to, "evaluate", deadline_s):
            counts = None if reply.has_error() else confusion_of(reply.content, self.classes)
            if counts is not None:
                results[device] = counts
        self.sink.evaluated(release, results)
        return results

    def _discover(self, deadline_s: float) -> tuple[str, ...]:
        """Ask nodes that are new who they are; return the usable devices that are online."""
        online = set(self.grid.get_node_ids())
        known = set(self.nodes.values()) | {int(n) for n in self.unusable}
        fresh = sorted(online - known)
        empty = Payload(np.zeros(0, np.float32), {})
        to = {str(node): node for node in fresh}
        for node, reply in self._ask(empty, to, "query.status", deadline_s):
            self._introduce(int(node), reply, online)
        return tuple(sorted(d for d, node in self.nodes.items() if node in online))

    def _introduce(self, node: int, reply: Message, online: set[int]) -> None:
        try:
            if reply.has_error():
                raise MismatchError("status", f"no status: {reply.error.reason}")
            config = payload_of(reply.content).config
            if "declined" in config:
                raise MismatchError(
                    "status", f"{config['declined']!s}: {config.get('detail', '')!s}"
                )
            status = DeviceStatus.model_validate(dict(config))
        except (MismatchError, ValidationError) as error:
            found = error.message if isinstance(error, MismatchError) else problems_of(error)
            self.unusable[str(node)] = found
            return
        # A device that comes back may do so as another node; its old one is offline then.
        if self.nodes.get(status.device) in online:
            self.unusable[str(node)] = f"a second node claims to be {status.device}"
        elif not status.usable:
            self.unusable[str(node)] = f"{status.device}: {status.reason}"
        else:
            self.nodes[status.device] = node

    def _ask(
        self, payload: Payload, to: Mapping[str, int], kind: str, deadline_s: float
    ) -> Iterable[tuple[str, Message]]:
        """Send to nodes by name; yield (name, reply) until all answered or the deadline passed."""
        until, left, asked = self.now() + deadline_s, iter(to), dict[str, str]()
        while True:
            if names := list(islice(left, LARGEST_QUESTION - len(asked))):
                nodes = [to[name] for name in names]
                messages = self._messages(payload, nodes, kind, kind, deadline_s)
                asked |= _sent(self.grid.push_messages(messages), names)
                continue
            if not asked:
                return
            replies = list(self.grid.pull_messages(asked.keys()))
            for reply in replies:
                device = asked.pop(str(reply.metadata.reply_to_message_id), "")
                if device:
                    yield device, reply
            if not replies:
                if self.now() >= until:
                    return
                self._pass(POLL_S)

    def _messages(
        self, payload: Payload, nodes: Iterable[int], kind: str, group: str, deadline_s: float
    ) -> list[Message]:
        """Make a message to each node; they share their records, which nobody changes."""
        content, ttl = content_of(payload), deadline_s + TTL_SLACK_S
        group = f"{self.group}/{group}"
        return [
            Message(content, dst_node_id=node, message_type=kind, ttl=ttl, group_id=group)
            for node in nodes
        ]


def _sent(ids: Iterable[str], devices: Iterable[str]) -> dict[str, str]:
    """Map message ids to devices; Flower returns an empty id for what it could not send."""
    return {i: device for i, device in zip(ids, devices, strict=True) if i}
