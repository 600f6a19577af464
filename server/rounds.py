"""The shell of the coordinator: carries out its effects over a Flower Grid and feeds it events.

It holds no decision of its own. Every message has a ttl and a group id, every wait ends at a
deadline on the clock that is passed in, and every answer is turned into an event or a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fleet.errors import MismatchError, RoundError, TooFewDevices
from fleet.federate.admission import Reason
from fleet.federate.proof import with_plan_proof, with_proof
from fleet.federate.records import DeviceStatus
from fleet.federate.releases import Release, catch_up
from fleet.federate.wire import Payload, Scalar, encode_plan
from fleet.seeds import sample
from server import coordinator as c
from server.asking import POLL_S, TTL_SLACK_S, Asking, sent, status_of
from server.messages import Traffic, confusion_of, payload_of, weight_on_wire
from server.signing import Signer

__all__ = ["Reports", "Shell", "Sink", "Traffic", "about", "event_of", "report_of"]

# Characters kept of a device's reason for not serving a release, or of an error of its own.
LARGEST_REASON = 500

Confusions = Mapping[str, NDArray[np.int64]]
Reports = Mapping[str, DeviceStatus | str]


class Sink(Protocol):
    """Where a run's results go; each call returns only once they are durable."""

    def publish(self, record: c.RoundRecord, release: Release | None, traffic: Traffic) -> None:
        """Keep a round's record and its release."""
        ...

    def evaluated(self, release: Release, results: Confusions) -> None:
        """Keep the devices' confusion counts ``(classes, classes)`` under a release."""
        ...

    def served(self, release: Release, reports: Reports) -> None:
        """Keep what devices that were told to serve a release serve now, or why they do not."""
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
        sign: Signs releases and plans; None leaves them unsigned.
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
    look_s: float = POLL_S
    sign: Signer | None = None
    asking: Asking = field(init=False)

    def __post_init__(self) -> None:
        self.asking = Asking(self.grid, self.now, self.wait, self.group)

    def run(self, state: c.State, *, evaluate_start: bool = True) -> c.State:
        """Run rounds until the coordinator ends the run; return its last state.

        Raises:
            RoundError: What the coordinator ended with, e.g. ``too-few-devices``.
        """
        started = not evaluate_start
        while state.phase is not c.Phase.ended:
            devices = self.asking.discover(state.rules.wait_s)
            state, effects = c.step(state, c.Fleet(self.now(), devices))
            if not effects:
                self.asking.let_pass(self.look_s)
                continue
            if not started and isinstance(effects[0], c.Push):
                self.evaluate(state.release, state.rules.deadline_s)
                started = True
            state = self._carry_out(state, effects)
        self.serve(state.release, state.rules.deadline_s)
        return state

    def judge(self, release: Release, rules: c.Rules) -> Confusions:
        """Find the devices, then evaluate a release, outside of any round."""
        self.asking.gather(rules.minimum, rules.wait_s, self.look_s)
        return self.evaluate(release, rules.deadline_s)

    def tell(self, release: Release, rules: c.Rules) -> None:
        """Find the devices, then have them serve a release, outside of any round."""
        self.asking.gather(rules.minimum, rules.wait_s, self.look_s)
        self.serve(release, rules.deadline_s)

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
        unusable = self.asking.unusable
        if not isinstance(error, TooFewDevices) or not unusable:
            return error
        reasons = sorted(set(unusable.values()))[:3]
        hint = f"{len(unusable)} node(s) cannot be used: {'; '.join(reasons)}. {error.hint}"
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
            replies = self.asking.pull(asked.keys())
            events: list[c.Event] = [*self.asking.overdue.take()]
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
                    self.asking.let_pass(POLL_S)
                state, effects = c.step(state, c.Tick(self.now()))
        self.asking.overdue.expect(asked, push.plan.round, self.now(), TTL_SLACK_S)
        return state, effects

    def _push_plan(self, push: c.Push, traffic: Traffic) -> dict[str, str]:
        payload = self._proven(encode_plan(push.plan, push.release.state), push.release)
        if self.sign is not None:
            payload = with_plan_proof(payload, self.sign.plan)
        nodes = self.asking.nodes
        reachable = [device for device in push.devices if device in nodes]
        messages = self.asking.messages(
            payload,
            [nodes[device] for device in reachable],
            "train",
            str(push.plan.round),
            push.plan.deadline_s,
        )
        ids = list(self.grid.push_messages(messages))
        traffic.messages_down += len(messages)
        traffic.bytes_down += payload.array.nbytes * len(messages)
        traffic.wire_bytes_down += sum(map(self.weigh, messages))
        return sent(ids, reachable)

    def _event_of(self, device: str, reply: Message, traffic: Traffic) -> c.Event:
        return event_of(device, reply, self.now(), traffic, self.weigh)

    def evaluate(self, release: Release, deadline_s: float) -> Confusions:
        """Let devices that are online judge a release; return the counts of those that did."""
        present = self.asking.discover(deadline_s)
        devices = sample(present, self.evaluate_devices, self.seed, "evaluation")
        to = {device: self.asking.nodes[device] for device in devices}
        results: dict[str, NDArray[np.int64]] = {}
        message = self._proven(about(release), release)
        for device, reply in self.asking.ask(message, to, "evaluate", deadline_s):
            counts = None if reply.has_error() else confusion_of(reply.content, self.classes)
            if counts is not None:
                results[device] = counts
        self.sink.evaluated(release, results)
        return results

    def serve(self, release: Release, deadline_s: float) -> None:
        """Have the devices that are online and serve a model serve this release.

        Asks nobody, a new node neither, unless a device has said that it serves one.
        """
        if not self.asking.serving:
            return
        self.asking.discover(deadline_s)
        online = set(self.grid.get_node_ids())
        serving = sorted(self.asking.serving.items())
        to = {device: node for device, node in serving if node in online}
        reports: dict[str, DeviceStatus | str] = {device: "offline" for device, _ in serving}
        reports |= dict.fromkeys(to, f"no answer within {deadline_s:g} s")
        message = self._proven(about(release), release)
        for device, reply in self.asking.ask(message, to, "query.release", deadline_s):
            reports[device] = report_of(device, reply)
        self.sink.served(release, reports)

    def _proven(self, payload: Payload, release: Release) -> Payload:
        return with_proof(payload, release, self.sign(release).hex()) if self.sign else payload


def event_of(
    device: str, reply: Message, now: float, traffic: Traffic, weigh: Callable[[Message], int]
) -> c.Event:
    """Return what a device's answer to a plan means to the coordinator, and count it."""
    if reply.has_error():
        reason = str(reply.error.reason or "error")[:LARGEST_REASON]
        return c.Failed(now, device, f"{reason} ({reply.error.code})")
    try:
        payload = payload_of(reply.content)
    except MismatchError as error:
        return c.Failed(now, device, error.message, Reason.malformed)
    traffic.messages_up += 1
    traffic.bytes_up += payload.array.nbytes
    traffic.wire_bytes_up += weigh(reply)
    if "declined" in payload.config:
        detail = f"{payload.config['declined']!s}: {payload.config.get('detail', '')!s}"
        return c.Failed(now, device, detail, Reason.declined)
    return c.Answered(now, device, payload)


def about(release: Release) -> Payload:
    """Return the message that brings a device to a release and says what was trained."""
    payload = catch_up(release)
    config: dict[str, Scalar] = {**payload.config, "method": release.method}
    return Payload(payload.array, config)


def report_of(device: str, reply: Message) -> DeviceStatus | str:
    """Return what a device that was told a release says that it serves, or why it does not."""
    try:
        status = status_of(reply)
    except MismatchError as error:
        return error.message[:LARGEST_REASON]
    return status if status.device == device else f"answered as {status.device}"
