"""Evaluations: devices judge a release on their own test windows and send counts, never data.

Nobody waits for them: the questions are under way while rounds are opened and closed. Each
evaluation ends when all who are there have answered, at its limit at the latest, and keeps why
everybody else has no counts in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from fleet.errors import MismatchError
from fleet.federate.wire import Payload
from fleet.measure.f1 import score_fleet
from server.asking import Asking
from server.messages import confusion_of, payload_of
from server.registry import Registry
from server.registry.records import Device, DeviceState
from server.rounds import LARGEST_REASON
from server.standing.delivery import message_of
from server.standing.eligibility import Absent, other_base
from server.standing.nodes import Roster
from server.standing.planning import Bench
from server.standing.questions import Question, Questions
from server.standing.world import World

__all__ = ["AWAY_S", "LARGEST_UNDER_WAY", "LARGEST_WANTED", "LONGEST_EVALUATION_S", "Judges"]

LONGEST_EVALUATION_S = 120.0
"""How long a device may take to judge a release."""
AWAY_S = 30.0
"""How long a device that went offline meanwhile is waited for."""
LARGEST_UNDER_WAY = 4
"""Evaluations at the same time; orders and releases that are wanted wait until one has ended."""
LARGEST_WANTED = 32
"""Releases that wait to be judged as the policy wants it; of more, the oldest is not judged."""
ACTOR = "service"


@dataclass
class _Evaluation:
    """One release that is being judged.

    Args:
        release: Its number.
        classes: Classes of its base.
        questions: Those to the devices.
        payload: What they are asked.
        left: Nodes of the devices that are still to be asked; so many at a time.
        unasked: Why a device is not asked.
        absent: Why a device that is asked has no counts.
    """

    release: int
    classes: int
    questions: Questions
    payload: Payload
    left: dict[str, int]
    unasked: dict[str, str]
    absent: dict[str, str] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    counts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    away_since: dict[str, float] = field(default_factory=dict)


@dataclass
class Judges:
    """Lets devices judge releases.

    Args:
        asking: Carries messages.
        roster: Who is behind which node.
        registry: Where counts are kept.
        bench: Bases, to know how many classes there are.
        world: Clock and words.

    """

    asking: Asking
    roster: Roster
    registry: Registry
    bench: Bench
    world: World
    _wanted: deque[int] = field(default_factory=deque, init=False)
    _wanted_last: int = field(default=0, init=False)
    _under_way: dict[int, _Evaluation] = field(default_factory=dict)

    def busy(self) -> bool:
        """Tell whether no further evaluation may begin now."""
        return len(self._under_way) >= LARGEST_UNDER_WAY

    def want(self, number: int) -> None:
        """Let a release wait for its place; once, however often it is wanted.

        With :data:`LARGEST_WANTED` waiting the oldest is told as unjudged: what the fleet is about
        to serve counts for more. While all who are there serve releases of other bases it is not
        wanted yet: they are on their way.
        """
        if number <= self._wanted_last or not self._followed(number):
            return
        self._wanted_last = number
        self._wanted.append(number)
        if len(self._wanted) > LARGEST_WANTED:
            why = f"at most {LARGEST_WANTED} releases wait to be judged, and newer ones do"
            self.world.say("release.unjudged", release=self._wanted.popleft(), why=why)

    def want_none(self) -> None:
        """Let those that wait go; what is under way goes on."""
        self._wanted.clear()
        self._wanted_last = 0

    def next_wanted(self) -> int | None:
        """Take the oldest release that waits and was not judged since; None when none may begin."""
        while self._wanted and not self.busy():
            number = self._wanted.popleft()
            if not self.registry.observations.evaluation(number):
                return number
        return None

    def judge(self, number: int, limit_s: float) -> None:
        """Ask every device that is online and enrolled; one that is under way goes on.

        A device that serves a release of another base is not asked: it has not the one judged.

        Args:
            number: Number of the release.
            limit_s: Seconds that devices may take; :data:`LONGEST_EVALUATION_S` at most.

        Raises:
            InputError: ``no-such-release``.
            FleetError: The release or its base cannot be read.
        """
        if number in self._under_way:
            return
        release, row = self.registry.releases.load(number), self.registry.releases.get(number)
        classes = len(self.bench.base(release.base).record.labels)
        devices = self.registry.devices.all()
        enrolled = {each.name for each in devices if each.state is DeviceState.enrolled}
        bases, what = self.registry.releases.bases(), f"release {number}"
        others = {
            each.name: f"{Absent.other_base.value}: {why}"
            for each in devices
            if (why := other_base(each, bases, release.base, what))
        }
        able = enrolled - others.keys()
        to = {d: node for d, node in self.roster.awake().items() if d in able}
        questions = Questions(self.asking, "evaluate", min(limit_s, LONGEST_EVALUATION_S))
        payload = message_of(release, row.signature)
        unasked = self._unasked((each for each in devices if each.name not in to), others)
        made = _Evaluation(number, classes, questions, payload, to, unasked)
        self._under_way[number] = made
        self._ask(made)

    def _followed(self, number: int) -> bool:
        """Tell whether anybody can judge a release, or nobody is there who could not."""
        bases, awake = self.registry.releases.bases(), self.roster.awake()
        here = [each for name, each in self.roster.devices.items() if name in awake]
        wanted = bases.get(number, "")
        return not here or not all(other_base(each, bases, wanted, "") for each in here)

    def _unasked(self, devices: Iterable[Device], others: Mapping[str, str]) -> dict[str, str]:
        """Return why devices are not asked; those that are revoked are none of the fleet's."""
        silent, refused = self.roster.silences(), self.roster.why_not()
        awake = self.roster.awake()
        found = {}
        for device in devices:
            name, state = device.name, device.state
            if state is DeviceState.quarantined:
                found[name] = state.value
            elif state is DeviceState.enrolled and name in awake and name in others:
                found[name] = others[name]
            elif state is DeviceState.enrolled:
                offline = f"offline: {refused.get(name, 'when it began')}"
                found[name] = f"silent: {silent[name]}" if name in silent else offline
        return found

    def _ask(self, evaluation: _Evaluation) -> None:
        if evaluation.left:
            asked = evaluation.questions.put(evaluation.payload, evaluation.left)
            evaluation.waiting.update(asked)
            for device in asked:
                del evaluation.left[device]

    def hear(self) -> dict[int, dict[str, Any]]:
        """Take the answers that came; end the evaluations that wait for nobody any more.

        Returns:
            By the number of each release of which the evaluation ended: ``devices`` that judged,
            their pooled ``macro_f1`` (None without any), and how many others did not, ``absent``.
        """
        ended = [each for each in list(self._under_way.values()) if self._over(each)]
        return {each.release: self._end(each) for each in ended}

    def _over(self, evaluation: _Evaluation) -> bool:
        for question, reply in evaluation.questions.heard(self.roster.online):
            self._take(evaluation, question, reply)
        for question in evaluation.questions.overdue():
            if question.name in evaluation.waiting:
                evaluation.waiting.remove(question.name)
                limit_s, early = evaluation.questions.limit_s, self.world.now() < question.until
                why = "its message got lost" if early else f"no answer within {limit_s:g} s"
                evaluation.absent[question.name] = f"no-reply: {why}"
        self._ask(evaluation)
        silent, here = self.roster.silences(), self.roster.here()
        why_not = {
            device: f"silent: {silent[device]}"
            if device in silent
            else self._why_gone(evaluation, device, device in here)
            for device in evaluation.waiting
        }
        for device, why in why_not.items():
            if why:
                evaluation.absent[device] = why
            else:
                evaluation.absent.pop(device, None)
        return not evaluation.left and all(why_not.values())

    def _take(self, evaluation: _Evaluation, question: Question, reply: Message) -> None:
        self.roster.alive(question.name)
        if question.name not in evaluation.waiting:
            return
        evaluation.waiting.remove(question.name)
        evaluation.absent.pop(question.name, None)
        found = None if reply.has_error() else confusion_of(reply.content, evaluation.classes)
        if found is None:
            evaluation.absent[question.name] = why_none(reply)
        elif question.name in self.roster.barred:
            evaluation.absent[question.name] = self.roster.barred[question.name]
        else:
            evaluation.counts[question.name] = found

    def _why_gone(self, evaluation: _Evaluation, device: str, here: bool) -> str:
        """Return why a device that has not answered is not waited for; empty where it is."""
        if device in self.roster.barred:
            return self.roster.barred[device]
        now = self.world.now()
        if here:
            evaluation.away_since.pop(device, None)
            return ""
        since = evaluation.away_since.setdefault(device, now)
        return f"offline: for {AWAY_S:g} s" if now - since >= AWAY_S else ""

    def _end(self, evaluation: _Evaluation) -> dict[str, Any]:
        number, counts = evaluation.release, evaluation.counts
        # Of very many only the first are kept: what was asked for in vain says more.
        absent = dict(sorted(evaluation.absent.items())) | dict(sorted(evaluation.unasked.items()))
        kept = {device: each.tolist() for device, each in counts.items()}
        self.registry.observations.evaluated(number, kept, absent=absent, actor=ACTOR)
        del self._under_way[number]
        pooled = score_fleet(list(counts.values())).pooled
        score = None if np.isnan(pooled) else round(pooled, 6)
        result: dict[str, Any] = {"devices": len(counts), "macro_f1": score, "absent": len(absent)}
        self.world.say("release.evaluated", release=number, **result)
        return result


def why_none(reply: Message) -> str:
    """Return why an answer has no counts, as its device says it."""
    if reply.has_error():
        return f"failed: {reply.error.reason or 'error'} ({reply.error.code})"[:LARGEST_REASON]
    try:
        config: Mapping[str, Any] = payload_of(reply.content).config
    except MismatchError:
        config = {}
    if "declined" in config:
        return f"declined: {config['declined']!s}: {config.get('detail', '')!s}"[:LARGEST_REASON]
    return "no-counts: its answer has no whole class counts"
