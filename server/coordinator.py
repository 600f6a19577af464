"""The round state machine: ``step(state, event) -> (state, effects)``, pure.

    idle ──Fleet──► planned ──Pushed──► collecting ──last answer or deadline──► aggregating
     ▲  │                                   │                                      │
     │  └─ too few, wait over ─► ended      └─ too few updates ─► abandoned        └─Published─►
     released
     │                                                              │                              │
     └──────────────────────── next round (or the same one again) ◄─┴──────────────────────────────┘

Clock, randomness and transport are passed in: events carry the time, the cohort is drawn from a
named
seed, effects are carried out by ``server/rounds.py`` over a Flower Grid. Every wait has a bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from fleet.adapt.state import Layout
from fleet.adapt.train import OptimiserName
from fleet.errors import InputError, RoundError, TooFewDevices
from fleet.federate.admission import Admitted, Bounds, Reason, admit
from fleet.federate.aggregate import PartialSum
from fleet.federate.records import Plan
from fleet.federate.releases import Release, next_release
from fleet.federate.wire import Payload
from fleet.seeds import generator

__all__ = [
    "Answered",
    "Effect",
    "End",
    "Event",
    "Failed",
    "Fleet",
    "Phase",
    "Publish",
    "Published",
    "Push",
    "Pushed",
    "Refusal",
    "RoundRecord",
    "Rules",
    "State",
    "Task",
    "Tick",
    "begin",
    "step",
]

# A round that nobody answers is tried again this often before the run ends with an error.
LARGEST_ABANDONED_IN_A_ROW = 3
# Characters of a refusal's detail; a device may send any text.
LARGEST_DETAIL = 500


class Phase(str, Enum):
    """Where a round stands."""

    idle = "idle"
    planned = "planned"
    collecting = "collecting"
    aggregating = "aggregating"
    ended = "ended"


@dataclass(frozen=True)
class Rules:
    """How rounds are run.

    Args:
        rounds: The run ends after this many releases.
        minimum: Devices that must be online before a round opens.
        cohort: Devices per round; 0 for all that are online.
        quorum: Updates that a release needs; 0 for half of the cohort.
        deadline_s: Seconds from the push of a plan to the close of its round.
        wait_s: Seconds to wait for enough devices before the run ends.
        seed: Root seed of the cohort's selection.
    """

    rounds: int
    minimum: int = 1
    cohort: int = 0
    quorum: int = 0
    deadline_s: float = 600.0
    wait_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if 0 < self.cohort < self.quorum:
            raise InputError(
                "quorum-above-cohort",
                f"a cohort of {self.cohort} can never send the {self.quorum} updates of the quorum",
                "Raise the cohort, or lower the quorum.",
            )

    def needed(self, selected: int) -> int:
        """Return how many updates a round of ``selected`` devices needs."""
        return self.quorum or max(1, -(-selected // 2))


@dataclass(frozen=True)
class Task:
    """What devices train, the same in every round of a run."""

    method: str
    rank: int
    layout: Layout
    optimiser: OptimiserName
    learning_rate: float
    momentum: float
    epochs: int
    batch: int
    weight_cap: int
    seed: int
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True)
class Refusal:
    """A device without an update in a round, and why."""

    device: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class RoundRecord:
    """What is kept of a round besides its release."""

    round: int
    plan: Plan
    selected: tuple[str, ...]
    accepted: tuple[Mapping[str, Any], ...]
    refused: tuple[Refusal, ...]
    opened_at_s: float
    closed_at_s: float
    released: bool


@dataclass(frozen=True)
class State:
    """Everything that the coordinator knows; immutable."""

    rules: Rules
    task: Task
    release: Release
    round: int = 1
    phase: Phase = Phase.idle
    waiting_since: float | None = None
    abandoned: int = 0
    plan: Plan | None = None
    selected: tuple[str, ...] = ()
    unanswered: frozenset[str] = frozenset()
    accepted: Mapping[str, Admitted] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    opened_at: float = 0.0


# Events: what happened, and when on the coordinator's clock.


@dataclass(frozen=True)
class Fleet:
    """These usable devices are online."""

    now: float
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Pushed:
    """The plan is on its way to the cohort."""

    now: float


@dataclass(frozen=True, eq=False)
class Answered:
    """A device sent something in answer to a plan."""

    now: float
    device: str
    payload: Payload


@dataclass(frozen=True)
class Failed:
    """A device declined, failed or went away."""

    now: float
    device: str
    detail: str
    reason: Reason = Reason.failed


@dataclass(frozen=True)
class Tick:
    """Time passed."""

    now: float


@dataclass(frozen=True)
class Published:
    """The release is durable."""

    now: float


Event = Fleet | Pushed | Answered | Failed | Tick | Published


# Effects: what the shell has to do.


@dataclass(frozen=True)
class Push:
    """Send the plan, with the release's core state, to the devices."""

    plan: Plan
    release: Release
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Publish:
    """Make the round's record, and its release where it has one, durable."""

    record: RoundRecord
    release: Release | None


@dataclass(frozen=True)
class End:
    """The run is over; ``error`` says why when it ended without its result."""

    error: RoundError | None = None


Effect = Push | Publish | End
Step = tuple[State, tuple[Effect, ...]]


def begin(rules: Rules, task: Task, release: Release, *, round_number: int = 1) -> State:
    """Return the idle state before ``round_number``."""
    return State(rules, task, release, round=round_number)


def step(state: State, event: Event) -> Step:
    """Take one event; return the next state and what has to be done.

    An event that has no place in the phase changes nothing, so late and repeated events are
    harmless.
    """
    if state.phase is Phase.idle and isinstance(event, Fleet):
        return _open(state, event)
    if state.phase is Phase.planned and isinstance(event, Pushed):
        return replace(state, phase=Phase.collecting, opened_at=event.now), ()
    if state.phase is Phase.collecting:
        return _collect(state, event)
    if state.phase is Phase.aggregating and isinstance(event, Published):
        return _next_round(state)
    return state, ()


def _open(state: State, event: Fleet) -> Step:
    rules = state.rules
    wanted = max(1, rules.minimum, rules.cohort, rules.quorum)
    if len(event.devices) < wanted:
        since = event.now if state.waiting_since is None else state.waiting_since
        if event.now - since >= rules.wait_s:
            return _end(state, _too_few(len(event.devices), wanted, rules))
        return replace(state, waiting_since=since), ()
    selected = _select(state, tuple(sorted(event.devices)))
    plan = _plan(state)
    planned = replace(
        state,
        phase=Phase.planned,
        waiting_since=None,
        plan=plan,
        selected=selected,
        unanswered=frozenset(selected),
        accepted={},
        refused=(),
    )
    return planned, (Push(plan, state.release, selected),)


def _select(state: State, devices: tuple[str, ...]) -> tuple[str, ...]:
    cohort = state.rules.cohort
    if cohort == 0 or cohort >= len(devices):
        return devices
    # A round that is tried again draws other devices: one bad draw must not end the run.
    purpose = f"cohort/{state.abandoned}" if state.abandoned else "cohort"
    rng = generator(state.rules.seed, state.round, "server", purpose)
    return tuple(devices[i] for i in sorted(rng.choice(len(devices), cohort, replace=False)))


def _plan(state: State) -> Plan:
    task, release = state.task, state.release
    return Plan(
        round=state.round,
        base=release.base,
        frame=release.frame,
        layout=task.layout.digest,
        release=release.number,
        state=release.state.digest,
        method=task.method,
        rank=task.rank,
        epochs=task.epochs,
        batch=task.batch,
        optimiser=task.optimiser,
        learning_rate=task.learning_rate,
        momentum=task.momentum,
        seed=task.seed,
        weight_cap=task.weight_cap,
        deadline_s=state.rules.deadline_s,
    )


def _collect(state: State, event: Event) -> Step:
    if isinstance(event, Answered):
        state = _judge(state, event)
    elif isinstance(event, Failed) and event.device in state.unanswered:
        state = _refuse(state, event.device, event.reason, event.detail)
    elif not isinstance(event, Tick):
        return state, ()
    overdue = event.now - state.opened_at >= state.rules.deadline_s
    if overdue or not state.unanswered:
        return _close(state, event.now)
    return state, ()


def _judge(state: State, event: Answered) -> State:
    assert state.plan is not None
    if event.device not in state.selected:
        return _refuse(state, event.device, Reason.unselected, "not in this round's cohort")
    if event.device not in state.unanswered:
        return _refuse(state, event.device, Reason.duplicate, "the device has answered already")
    if event.now - state.opened_at >= state.rules.deadline_s:
        return _refuse(state, event.device, Reason.late, "after the round's deadline")
    verdict = admit(event.payload, state.plan, state.task.layout, event.device, state.task.bounds)
    if isinstance(verdict, Admitted):
        accepted = {**state.accepted, event.device: verdict}  # a new dict: states are never changed
        return replace(state, accepted=accepted, unanswered=state.unanswered - {event.device})
    return _refuse(state, event.device, verdict.reason, verdict.detail)


def _refuse(state: State, device: str, reason: Reason, detail: str) -> State:
    refused = (*state.refused, Refusal(device, reason, detail[:LARGEST_DETAIL]))
    return replace(state, refused=refused, unanswered=state.unanswered - {device})


def _close(state: State, now: float) -> Step:
    for device in sorted(state.unanswered):
        state = _refuse(state, device, Reason.no_reply, "no answer before the deadline")
    enough = len(state.accepted) >= state.rules.needed(len(state.selected))
    record = _record(state, now, released=enough)
    if enough:
        release = _aggregate(state)
        moved = replace(state, phase=Phase.aggregating, release=release, abandoned=0)
        return moved, (Publish(record, release),)
    abandoned = replace(state, phase=Phase.idle, plan=None, abandoned=state.abandoned + 1)
    if abandoned.abandoned >= LARGEST_ABANDONED_IN_A_ROW:
        ended, effects = _end(abandoned, _nobody(record, state.rules))
        return ended, (Publish(record, None), *effects)
    return abandoned, (Publish(record, None),)


def _aggregate(state: State) -> Release:
    assert state.plan is not None
    total = PartialSum.empty(state.task.layout.size)
    for device in sorted(state.accepted):
        total = total.add(state.accepted[device].steps, state.accepted[device].weight)
    provenance = {
        "round": state.round,
        "plan": state.plan.id,
        "rule": "weighted mean, int64 fixed point",
        "devices": {d: state.accepted[d].weight for d in sorted(state.accepted)},
    }
    return next_release(state.release, total.mean(), provenance)


def _record(state: State, now: float, *, released: bool) -> RoundRecord:
    assert state.plan is not None
    accepted = tuple(
        {
            "device": device,
            "weight": update.weight,
            "norm": update.norm,
            "digest": update.digest,
            "loss": update.header.loss,
            "steps": update.header.steps,
        }
        for device, update in sorted(state.accepted.items())
    )
    return RoundRecord(
        state.round,
        state.plan,
        state.selected,
        accepted,
        state.refused,
        state.opened_at,
        now,
        released,
    )


def _next_round(state: State) -> Step:
    if state.round >= state.rules.rounds:
        return _end(state, None)
    return replace(state, phase=Phase.idle, round=state.round + 1, plan=None), ()


def _end(state: State, error: RoundError | None) -> Step:
    return replace(state, phase=Phase.ended), (End(error),)


def _too_few(online: int, wanted: int, rules: Rules) -> TooFewDevices:
    return TooFewDevices(
        "too-few-devices",
        f"{online} usable device(s) online after {rules.wait_s:g} s; a round needs {wanted}",
        "Start more devices, or lower cohort and quorum.",
    )


def _nobody(record: RoundRecord, rules: Rules) -> RoundError:
    reasons = ", ".join(f"{r.device}: {r.reason.value}" for r in record.refused[:5])
    return RoundError(
        "round-abandoned",
        f"round {record.round} was abandoned {LARGEST_ABANDONED_IN_A_ROW} times: "
        f"{len(record.accepted)} of {len(record.selected)} updates accepted, "
        f"{rules.needed(len(record.selected))} needed ({reasons})",
        "Look at the refusals in rounds.jsonl.",
    )
