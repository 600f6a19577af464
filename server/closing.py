"""The close of a round: what its rule makes of the updates, or why there is no release."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fleet.errors import MismatchError, RoundError
from fleet.federate.releases import Release, next_release
from server.events import RoundRecord, State
from server.rules import Closed, rule_of

__all__ = ["close_round"]


def close_round(state: State, now: float) -> tuple[RoundRecord, Release | None]:
    """Aggregate a round by the rule that the run chose; pure.

    Args:
        state: All its devices have answered, or are refused.
        now: On the coordinator's clock.

    Returns:
        The round's record and its release; without one the record has the reason.
    """
    closed = _aggregate(state)
    if isinstance(closed, str):
        return _record(state, now, rule=state.rules.rule.record, reason=closed), None
    rule = {**state.rules.rule.record, **closed.record}
    record = _record(state, now, rule=rule, memory=closed.memory)
    provenance = {
        "round": state.round,
        "plan": record.plan.id,
        "rule": rule,
        "devices": {d: state.accepted[d].weight for d in sorted(state.accepted)},
    }
    release = next_release(state.release, closed.mean, provenance, number=state.number)
    return replace(record, released=True), release


def _aggregate(state: State) -> Closed | str:
    rule, accepted = state.rules.rule, len(state.accepted)
    needed = state.rules.needed(len(state.selected))
    if accepted < needed:
        whose = f"the rule {rule.text}" if needed == rule.fewest > 1 else "the quorum"
        return f"{accepted} update(s) accepted, {whose} needs {needed}"
    try:
        return rule_of(rule).close(state.release, state.accepted, state.memory)
    except (MismatchError, RoundError) as error:
        return f"the rule {rule.text} cannot be applied: {error.message}"


def _record(state: State, now: float, **found: Any) -> RoundRecord:
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
        released=False,
        late=state.late,
        **found,
    )
