"""May the device train now? A pure decision over readings, with every reason at once.

The device has a job: it recognises activities. Learning happens beside it, so a policy says under
which heat, charge, hours and network it may happen. A refusal's reasons are the stable codes that
travel to the server; :mod:`clients.agent.decisions` logs every decision with its readings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Literal

from pydantic import Field, field_validator

from clients.agent.power.readings import Readings
from fleet.tables import Table

__all__ = ["EVENT", "Decision", "Policy", "Refusal", "in_hours", "may_train"]

SPAN = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")
EVENT = "policy.decided"


class Refusal(str, Enum):
    """Why a device does not train; the values are stable, the server records them."""

    TOO_HOT = "too-hot"
    ON_BATTERY = "on-battery"
    LOW_BATTERY = "low-battery"
    OUTSIDE_HOURS = "outside-hours"
    METERED = "metered"
    NO_NEW_LABELS = "no-new-labels"
    NO_DRIFT = "no-drift"
    OVER_BUDGET = "over-budget"
    NO_READING = "no-reading"


class Policy(Table):
    """Under which conditions a device trains."""

    max_temperature_c: float = Field(
        default=75.0,
        ge=0,
        le=120,
        description="Training is refused above this temperature, Celsius.",
    )
    hysteresis_c: float = Field(
        default=5.0,
        ge=0,
        le=40,
        description="Once too hot, training waits until it is this much cooler.",
    )
    only_on_mains: bool = Field(default=True, description="Training needs an external supply.")
    min_battery_percent: float = Field(
        default=30.0, ge=0, le=100, description="Without an external supply: least charge. 0: any."
    )
    allowed_hours: tuple[str, ...] = Field(
        default=(),
        max_length=24,
        description='Local times, e.g. ["22:00-06:00"], end excluded; []: at any time.',
    )
    metered_network: Literal["auto", "yes", "no"] = Field(
        default="auto",
        description="Whether the network is paid by volume; auto asks NetworkManager.",
    )
    allow_metered: bool = Field(default=False, description="Train although the network is metered.")
    min_new_labels: int = Field(
        default=1, ge=0, description="New labels that make a training worth it; 0: none are needed."
    )
    label_rounds: int = Field(
        default=20,
        ge=1,
        le=1000,
        description="Trainings for which a label counts as new: a fleet learns from it over several"
        " rounds.",
    )
    max_training_s_per_day: float = Field(
        default=0.0, ge=0, le=86_400, description="Seconds of training per day; 0: no limit."
    )
    memory_budget_bytes: int = Field(
        default=256 * 2**20,
        ge=0,
        description="What a training step may hold beyond parameters and optimiser state: larger"
        " batches run in parts. 0: no limit but the plan's.",
    )
    share_class_counts: bool = Field(
        default=True,
        description="Answer an evaluation with counts by true and recognised class; else with"
        " macro-F1 alone.",
    )
    unknown: Literal["allow", "refuse"] = Field(
        default="allow",
        description="When a sensor that a rule needs is absent. A developer kit on a wall plug has"
        " no battery to ask, so the default lets it train.",
    )

    @field_validator("allowed_hours")
    @classmethod
    def _spans(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        wrong = [
            span for span in value if not SPAN.fullmatch(span) or len(set(span.split("-"))) == 1
        ]
        if wrong:
            raise ValueError(f"HH:MM-HH:MM with two different times, not {', '.join(wrong)}")
        return value


@dataclass(frozen=True)
class Decision:
    """What was decided, and from what.

    Args:
        allowed: Whether the device may train.
        reasons: Every rule that refuses, in the order of :class:`Refusal`; empty when allowed.
        readings: What the decision was made from.
        at: When, in local time.
        unknown: Quantities that a rule asked for and no sensor knew.
    """

    allowed: bool
    reasons: tuple[Refusal, ...]
    readings: Readings
    at: datetime
    unknown: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Return the decision as JSON holds it."""
        return {
            "event": EVENT,
            "at": self.at.isoformat(),
            "allowed": self.allowed,
            "reasons": [reason.value for reason in self.reasons],
            "unknown": list(self.unknown),
            "readings": self.readings.record(),
        }


def may_train(
    policy: Policy, readings: Readings, now: datetime, previous: Decision | None = None
) -> Decision:
    """Decide; pure.

    Args:
        policy: The rules.
        readings: The device at ``now``.
        now: Local time.
        previous: The decision before: after a refusal for heat, the device must cool down by the
            hysteresis first, lest training go on and off around the limit.
    """
    answers: Mapping[Refusal, bool | None] = {
        Refusal.TOO_HOT: _too_hot(policy, readings, previous),
        Refusal.ON_BATTERY: _unless(readings.on_mains) if policy.only_on_mains else False,
        Refusal.LOW_BATTERY: _low_battery(policy, readings),
        Refusal.OUTSIDE_HOURS: not in_hours(policy.allowed_hours, now),
        Refusal.METERED: _metered(policy, readings),
        Refusal.NO_NEW_LABELS: (
            readings.new_labels is not None and readings.new_labels < policy.min_new_labels
        ),
        Refusal.NO_DRIFT: readings.rounds_left == 0,
        Refusal.OVER_BUDGET: (
            policy.max_training_s_per_day > 0
            and (readings.trained_today_s or 0.0) >= policy.max_training_s_per_day
        ),
    }
    unknown = tuple(_ASKED[refusal] for refusal, answer in answers.items() if answer is None)
    reasons = [refusal for refusal, answer in answers.items() if answer]
    if unknown and policy.unknown == "refuse":
        reasons.append(Refusal.NO_READING)
    return Decision(not reasons, tuple(reasons), readings, now, unknown)


# A rule's answer: refuse, let pass, or None for "no sensor says".
_ASKED = {
    Refusal.TOO_HOT: "temperature_c",
    Refusal.ON_BATTERY: "on_mains",
    Refusal.LOW_BATTERY: "battery_percent",
    Refusal.METERED: "metered",
}


def in_hours(spans: tuple[str, ...], now: datetime) -> bool:
    """Tell whether a local time lies in one of the spans; no span allows any time.

    A span may pass midnight: ``22:00-06:00`` holds at 23:00 and at 05:59, and not at 06:00.
    """
    minute = now.hour * 60 + now.minute
    for span in spans:
        found = SPAN.fullmatch(span)
        if found is None:
            continue
        start, end = (int(found[i]) * 60 + int(found[i + 1]) for i in (1, 3))
        if start <= minute < end if start < end else (minute >= start or minute < end):
            return True
    return not spans


def _too_hot(policy: Policy, readings: Readings, previous: Decision | None) -> bool | None:
    if readings.temperature_c is None:
        return None
    cooling = previous is not None and Refusal.TOO_HOT in previous.reasons
    return readings.temperature_c > policy.max_temperature_c - (
        policy.hysteresis_c if cooling else 0.0
    )


def _low_battery(policy: Policy, readings: Readings) -> bool | None:
    if readings.on_mains or policy.min_battery_percent == 0:
        return False
    if readings.battery_percent is None:
        return None
    return readings.battery_percent < policy.min_battery_percent


def _metered(policy: Policy, readings: Readings) -> bool | None:
    if policy.allow_metered:
        return False
    return readings.metered if policy.metered_network == "auto" else policy.metered_network == "yes"


def _unless(answer: bool | None) -> bool | None:
    return None if answer is None else not answer
