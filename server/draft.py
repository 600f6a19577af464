"""A draft: what a batch of events changes in a collecting state, before it is a state again."""

from __future__ import annotations

from dataclasses import replace

from fleet.federate.admission import Admitted, Reason, admit
from server.events import Answered, Late, Refusal, State

__all__ = ["Draft"]

# Answers that nobody waits for are recorded up to this many a round, then dropped.
LARGEST_STRAY_ANSWERS = 1000
# Characters of a refusal's detail; a device may send any text.
LARGEST_DETAIL = 500


class Draft:
    """What is new since a state; the state itself stays as it is.

    Args:
        state: A state that collects answers.
    """

    def __init__(self, state: State) -> None:
        assert state.plan is not None
        self._state, self._plan = state, state.plan
        self._heard: set[str] = set()
        self._accepted: dict[str, Admitted] = {}
        self._refused: list[Refusal] = []
        self._late: list[Refusal] = []

    @property
    def left(self) -> int:
        """How many devices have not answered."""
        return len(self._state.unanswered) - len(self._heard)

    def waits_for(self, device: str) -> bool:
        """Tell whether a device was asked and has not answered."""
        return device in self._state.unanswered and device not in self._heard

    def silent(self) -> list[str]:
        """Return the devices that have not answered, sorted."""
        return sorted(self._state.unanswered - self._heard)

    def overdue(self, now: float) -> bool:
        """Tell whether the round's deadline has passed."""
        return now - self._state.opened_at >= self._state.rules.deadline_s

    @property
    def enough(self) -> bool:
        """Whether so many updates are accepted that the round waits for no more."""
        accepted = len(self._state.accepted) + len(self._accepted)
        return 0 < self._state.rules.enough <= accepted

    def judge(self, event: Answered) -> None:
        """Accept what a device sent, or refuse it."""
        state, device = self._state, event.device
        if not self.waits_for(device):
            so_far = len(state.refused) + len(self._refused)
            if so_far < len(state.selected) + LARGEST_STRAY_ANSWERS:
                self._refuse_stray(device)
        elif self.overdue(event.now):
            self.refuse(device, Reason.late, "after the round's deadline")
        else:
            task = state.task
            verdict = admit(event.payload, self._plan, task.layout, device, task.bounds)
            if isinstance(verdict, Admitted):
                self._accepted[device] = verdict
                self._heard.add(device)
            else:
                self.refuse(device, verdict.reason, verdict.detail)

    def _refuse_stray(self, device: str) -> None:
        if device in self._state.selected:
            self.refuse(device, Reason.duplicate, "the device has answered already")
        else:
            self.refuse(device, Reason.unselected, "not in this round's cohort")

    def note_late(self, event: Late) -> None:
        """Note an answer to an earlier round; the device may still answer this one."""
        if len(self._state.late) + len(self._late) < LARGEST_STRAY_ANSWERS:
            refusal = Refusal(event.device, Reason.late, event.detail[:LARGEST_DETAIL])
            self._late.append(refusal)

    def refuse(self, device: str, reason: Reason, detail: str) -> None:
        """Note that a device has no update in this round, and why."""
        self._refused.append(Refusal(device, reason, detail[:LARGEST_DETAIL]))
        if device in self._state.unanswered:
            self._heard.add(device)

    def done(self) -> State:
        """Return the state with what is new."""
        state = self._state
        if not (self._heard or self._refused or self._late):
            return state
        return replace(
            state,
            unanswered=state.unanswered - self._heard,
            accepted={**state.accepted, **self._accepted},
            refused=(*state.refused, *self._refused),
            late=(*state.late, *self._late),
        )
