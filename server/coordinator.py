"""The round state machine: ``step(state, event) -> (state, effects)``, pure.

    idle ──Fleet──► planned ──Pushed──► collecting ──last answer, deadline──► aggregating
     ▲  │                                   │                                      │
     │  └─ too few, wait over ─► ended      └─ too few updates ─► abandoned    Published
     │                                                                │            │
     └────────── the same round again, three times at most ◄──────────┘            │
     └────────── the next round, or ended after the last ◄───────── released ◄─────┘

A round is closed by the rule that the run chose (``server/closing.py``); where that cannot be
applied, the round is abandoned. Clock, randomness and transport are passed in: events carry the
time, the cohort is drawn from a named seed, and ``server/rounds.py`` carries effects out over
a Flower Grid. Every wait has a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fleet.errors import RoundError, TooFewDevices
from fleet.federate.admission import Reason
from fleet.federate.records import Plan
from fleet.federate.releases import Release
from fleet.seeds import generator
from server.closing import close_round
from server.draft import Draft
from server.events import (
    Answered,
    Effect,
    End,
    Event,
    Failed,
    Fleet,
    Late,
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
from server.rules.memory import NOTHING, Memory

__all__ = [
    "Answered",
    "Effect",
    "End",
    "Event",
    "Failed",
    "Fleet",
    "Late",
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
    "draw",
    "step",
    "step_all",
]

# A round that nobody answers is tried again this often before the run ends with an error.
LARGEST_ABANDONED_IN_A_ROW = 3


def begin(
    rules: Rules,
    task: Task,
    release: Release,
    *,
    round_number: int = 1,
    memory: Memory = NOTHING,
) -> State:
    """Return the idle state before ``round_number``.

    Args:
        rules: How rounds are run.
        task: What devices train.
        release: What they start from.
        round_number: From 1.
        memory: What the rule remembered when it made ``release``.
    """
    return State(rules, task, release, round=round_number, memory=memory)


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
        collected, effects, _ = _collect(state, [event])
        return collected, effects
    if state.phase is Phase.aggregating and isinstance(event, Published):
        return _next_round(state)
    return state, ()


def _open(state: State, event: Fleet) -> Step:
    rules = state.rules
    wanted = max(1, rules.minimum, rules.cohort, rules.quorum, rules.rule.fewest)
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
        late=(),
    )
    return planned, (Push(plan, state.release, selected),)


def _select(state: State, devices: tuple[str, ...]) -> tuple[str, ...]:
    return draw(devices, state.rules.cohort, state.rules.seed, state.round, state.abandoned)


def draw(
    devices: tuple[str, ...], cohort: int, seed: int, round_number: int, abandoned: int = 0
) -> tuple[str, ...]:
    """Draw the cohort of a round.

    Args:
        devices: Sorted.
        cohort: How many; 0 for all.
        seed: Root seed.
        round_number: The round.
        abandoned: How often it was abandoned before.

    >>> draw(("a", "b"), 0, 0, 1)
    ('a', 'b')
    """
    if cohort == 0 or cohort >= len(devices):
        return devices
    # A round that is tried again draws other devices: one bad draw must not end the run.
    purpose = f"cohort/{abandoned}" if abandoned else "cohort"
    rng = generator(seed, round_number, "server", purpose)
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
        max_steps=task.max_steps,
        memory_budget=task.memory_budget,
        compression=task.compression,
        anchor=task.anchor,
        ewc=task.ewc,
        distil=task.distil,
    )


def step_all(state: State, events: Sequence[Event]) -> Step:
    """Take events that came together; ends where :func:`step` with one after the other ends.

    States are never changed, so each step with an answer copies the answers before it; a batch
    copies them once.
    """
    effects: tuple[Effect, ...] = ()
    left = list(events)
    while left:
        if state.phase is Phase.collecting:
            state, more, taken = _collect(state, left)
            left = left[taken:]
        else:
            state, more = step(state, left.pop(0))
        effects += more
    return state, effects


def _collect(state: State, events: Sequence[Event]) -> tuple[State, tuple[Effect, ...], int]:
    """Take events until they close the round; say how many were taken."""
    draft = Draft(state)
    for taken, event in enumerate(events, 1):
        if isinstance(event, Answered):
            draft.judge(event)
        elif isinstance(event, Failed) and draft.waits_for(event.device):
            draft.refuse(event.device, event.reason, event.detail)
        elif isinstance(event, Late):
            draft.note_late(event)
        elif not isinstance(event, Tick):
            continue
        if draft.overdue(event.now) or draft.enough or not draft.left:
            closed, effects = _close(draft, event.now)
            return closed, effects, taken
    return draft.done(), (), len(events)


def _close(draft: Draft, now: float) -> Step:
    why = "the round had enough updates" if draft.enough else "no answer before the deadline"
    for device in draft.silent():
        draft.refuse(device, Reason.no_reply, why)
    state = draft.done()
    record, release = close_round(state, now)
    if release is not None:
        moved = replace(
            state, phase=Phase.aggregating, release=release, memory=record.memory, abandoned=0
        )
        return moved, (Publish(record, release),)
    abandoned = replace(state, phase=Phase.idle, plan=None, abandoned=state.abandoned + 1)
    if abandoned.abandoned >= LARGEST_ABANDONED_IN_A_ROW:
        ended, effects = _end(abandoned, _nobody(record, state.rules))
        return ended, (Publish(record, None), *effects)
    return abandoned, (Publish(record, None),)


def _next_round(state: State) -> Step:
    if state.round >= state.rules.rounds:
        return _end(state, None)
    return replace(state, phase=Phase.idle, round=state.round + 1, plan=None), ()


def _end(state: State, error: RoundError | None) -> Step:
    return replace(state, phase=Phase.ended), (End(error),)


def _too_few(online: int, wanted: int, rules: Rules) -> TooFewDevices:
    by = f", its rule {rules.rule.text} does" if wanted == rules.rule.fewest > 1 else ""
    return TooFewDevices(
        "too-few-devices",
        f"{online} usable device(s) online after {rules.wait_s:g} s; a round needs {wanted}{by}",
        "Start more devices, or lower cohort and quorum.",
    )


def _nobody(record: RoundRecord, rules: Rules) -> RoundError:
    reasons = "".join(f"; {r.device}: {r.reason.value}: {r.detail}" for r in record.refused[:3])
    return RoundError(
        "round-abandoned",
        f"round {record.round} was abandoned {LARGEST_ABANDONED_IN_A_ROW} times: "
        f"{len(record.accepted)} of {len(record.selected)} updates accepted, "
        f"{rules.needed(len(record.selected))} needed ({record.reason}{reasons})",
        "The refusals are in the round's record, rounds/NUMBER-abandoned.json.",
    )
