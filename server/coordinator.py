"""The round state machine: ``step(state, event) -> (state, effects)``, pure.

    idle ──Fleet──► planned ──Pushed──► collecting ──last answer, deadline──► aggregating
     ▲  │                                   │                                      │
     │  └─ too few, wait over ─► ended      └─ too few updates ─► abandoned    Published
     │                                                                │            │
     └────────── the same round again, three times at most ◄──────────┘            │
     └────────── the next round, or ended after the last ◄───────── released ◄─────┘

Clock, randomness and transport are passed in: events carry the time, the cohort is drawn from a
named seed, and effects are carried out by ``server/rounds.py`` over a Flower Grid. Every wait has
a bound.
"""

from __future__ import annotations

from dataclasses import replace

from fleet.errors import RoundError, TooFewDevices
from fleet.federate.admission import Admitted, Reason, admit
from fleet.federate.aggregate import PartialSum
from fleet.federate.records import Plan
from fleet.federate.releases import Release, next_release
from fleet.seeds import generator
from server.events import (
    Answered,
    Effect,
    End,
    Event,
    Failed,
    Fleet,
    Phase,
    Publish,
    Published,
    Push,
    Pushed,
    Refusal,
    RoundRecord,
    Rules,
    State,
    Step,
    Task,
    Tick,
)

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
    "Step",
    "Task",
    "Tick",
    "begin",
    "step",
]

# A round that nobody answers is tried again this often before the run ends with an error.
LARGEST_ABANDONED_IN_A_ROW = 3
# Answers that nobody waits for are recorded up to this many a round, then dropped.
LARGEST_STRAY_ANSWERS = 1000
# Characters of a refusal's detail; a device may send any text.
LARGEST_DETAIL = 500


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
    stray = event.device not in state.unanswered
    if stray and len(state.refused) >= len(state.selected) + LARGEST_STRAY_ANSWERS:
        return state
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
    reasons = ", ".join(f"{r.device}: {r.reason.value}: {r.detail}" for r in record.refused[:3])
    return RoundError(
        "round-abandoned",
        f"round {record.round} was abandoned {LARGEST_ABANDONED_IN_A_ROW} times: "
        f"{len(record.accepted)} of {len(record.selected)} updates accepted, "
        f"{rules.needed(len(record.selected))} needed ({reasons})",
        "The refusals are in the round's record, rounds/NUMBER-abandoned.json.",
    )
