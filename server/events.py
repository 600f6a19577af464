"""What the coordinator knows, what can happen to it, and what it asks for; all immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from fleet.adapt.state import Layout
from fleet.adapt.train import OptimiserName
from fleet.errors import InputError, RoundError
from fleet.federate.admission import Admitted, Bounds, Reason
from fleet.federate.compress import Encoding
from fleet.federate.records import Plan
from fleet.federate.releases import Release
from fleet.federate.rule import MEAN, RuleSpec
from fleet.federate.wire import Payload
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
    "too_few_for",
]


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
        rule: How updates are aggregated.
        enough: The round closes once so many updates are accepted; 0 waits for all that were
            asked.

    Raises:
        InputError: ``quorum-above-cohort`` or ``rule-above-cohort``.
    """

    rounds: int
    minimum: int = 1
    cohort: int = 0
    quorum: int = 0
    deadline_s: float = 600.0
    wait_s: float = 60.0
    seed: int = 0
    rule: RuleSpec = MEAN
    enough: int = 0

    def __post_init__(self) -> None:
        if 0 < self.cohort < self.quorum:
            raise InputError(
                "quorum-above-cohort",
                f"a cohort of {self.cohort} can never send the {self.quorum} updates of the quorum",
                "Raise the cohort, or lower the quorum.",
            )
        if 0 < self.cohort < self.rule.fewest:
            raise too_few_for(self.rule, self.cohort, "a cohort")

    def needed(self, selected: int) -> int:
        """Return how many updates a round of ``selected`` devices needs."""
        return max(self.rule.fewest, self.quorum or max(1, -(-selected // 2)))


def too_few_for(rule: RuleSpec, devices: int, what: str) -> InputError:
    """Return why a rule cannot aggregate what so many devices send."""
    return InputError(
        "rule-above-cohort",
        f"the rule {rule.text} needs {rule.fewest} updates, {what} of {devices} sends fewer",
        "Raise the number of devices, or choose a rule that needs fewer: docs/aggregation.md.",
    )


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
    max_steps: int = 0
    memory_budget: int = 0
    compression: Encoding = "none"
    anchor: float = 0.0
    ewc: float = 0.0
    distil: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """A device without an update in a round, and why."""

    device: str
    reason: Reason
    detail: str


@dataclass(frozen=True)
class RoundRecord:
    """What is kept of a round besides its release.

    ``late`` are answers to plans of rounds before it that came while it was open; they were
    refused there as ``no-reply``. ``rule`` is how updates were aggregated and what the rule did;
    ``reason`` why there is no release; ``memory`` what the rule remembers, for the next round.
    """

    round: int
    plan: Plan
    selected: tuple[str, ...]
    accepted: tuple[Mapping[str, Any], ...]
    refused: tuple[Refusal, ...]
    opened_at_s: float
    closed_at_s: float
    released: bool
    late: tuple[Refusal, ...] = ()
    rule: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""
    memory: Memory = NOTHING


@dataclass(frozen=True)
class State:
    """Everything that the coordinator knows; immutable.

    ``number`` is that of the release that the round makes, after a rollback more than one above the
    release that it starts from; 0 for the next.
    """

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
    late: tuple[Refusal, ...] = ()
    opened_at: float = 0.0
    number: int = 0
    memory: Memory = NOTHING


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
class Late:
    """A device answered the plan of a round that is closed; nothing of it is used."""

    now: float
    device: str
    detail: str


@dataclass(frozen=True)
class Tick:
    """Time passed."""

    now: float


@dataclass(frozen=True)
class Published:
    """The release is durable."""

    now: float


Event = Fleet | Pushed | Answered | Failed | Late | Tick | Published


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
