"""What the fleet is to do: one frozen record, versioned in the registry."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fleet.errors import InputError
from fleet.federate.compress import Encoding
from fleet.federate.records import LARGEST_DISTIL, LARGEST_PULL, problems_of
from fleet.federate.rule import MEAN, read_rule

__all__ = ["LARGEST_COHORT", "ON_ORDER", "FleetPolicy"]

LARGEST_COHORT = 100_000
LARGEST_NAMES = 32
ON_ORDER = "on order only"
"""Why a service idles whose policy sets no pace."""
DIGEST_OF = "fleet base show FILE --format json"
DIGITS = 64
DIGEST = re.compile(f"[0-9a-f]{{{DIGITS}}}")
LONGEST_DEADLINE_S = 7 * 24 * 3600.0
"""A round that is open longer keeps everybody from the next one."""


class FleetPolicy(BaseModel):
    """How rounds are planned, who takes part, and what happens to a release.

    Args:
        base: Digest of a base of the fleet's line, 64 hexadecimal digits: the one that its first
            release is of, or one that it was moved to since. Rounds train on the release's base.
        method: What is trained, see ``fleet.peft``.
        rank: Columns of each core on that base; on another one of the line it is that one's own.
        rule: How updates are aggregated, see ``fleet.federate.rule``; what it remembers from round
            to round is kept with each release, and another rule starts afresh.
        compression: How updates are packed, see ``fleet.federate.compress``.
        optimiser: ``sgd`` or ``adam``.
        learning_rate: Step size.
        momentum: Of SGD.
        epochs: Passes over a device's windows per round.
        max_steps: Most optimiser steps of a device per round; 0 for as many as the epochs have.
        batch: Windows per step.
        weight_cap: Largest weight of one device in the mean, windows.
        seed: Root of the cohort's selection and of local batch order.
        memory_budget: Bytes that a step may hold; 0 for no limit.
        anchor: Strength of L2 to the release in local training, see ``fleet.continual.guards``; 0
            for none. Devices from before there were guards refuse a plan that asks for one.
        ewc: Strength of elastic weight consolidation; 0 for none.
        distil: Strength of distillation from the release; 0 for none.
        cohort: Devices asked per round; 0 for all that are eligible.
        quorum: Updates that a release needs; 0 for half of those asked.
        over_select: With it, ``quorum + over_select`` devices are asked and the round closes once
            ``quorum`` of them answered; 0 waits for all that were asked.
        minimum: Distinct devices that must be eligible before a round opens.
        deadline_s: Seconds from the opening of a round to its close.
        tags: Only devices with all of these take part.
        without_tags: Devices with one of these do not.
        stale_after_s: A device that was not heard of for longer is not asked; 0 for any age.
        min_train_windows: Labelled windows that a device needs.
        bytes_per_device_day: A device that moved as many bytes this day (UTC) is not asked;
            0 for no limit.
        every_s: Pause from the close of a round to the next; 0: only on an operator's order.
        rounds: Rounds in all; 0 without end.
        auto_promote: Whether a new release becomes the fleet's at once.
        evaluate_every: Releases between evaluations; 0 for none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    base: str
    method: str = Field(default="core", min_length=1, max_length=64)
    rank: int = Field(default=4, ge=1)
    rule: str = MEAN.text
    compression: Encoding = "none"
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = Field(default=0.05, gt=0, le=100)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    epochs: int = Field(default=1, ge=1, le=1000)
    max_steps: int = Field(default=0, ge=0)
    batch: int = Field(default=32, ge=1, le=65536)
    weight_cap: int = Field(default=4096, ge=1, le=4096)
    seed: int = Field(default=0, ge=0)
    memory_budget: int = Field(default=0, ge=0)
    anchor: float = Field(default=0.0, ge=0, le=LARGEST_PULL)
    ewc: float = Field(default=0.0, ge=0, le=LARGEST_PULL)
    distil: float = Field(default=0.0, ge=0, le=LARGEST_DISTIL)
    cohort: int = Field(default=0, ge=0, le=LARGEST_COHORT)
    quorum: int = Field(default=0, ge=0, le=LARGEST_COHORT)
    over_select: int = Field(default=0, ge=0, le=LARGEST_COHORT)
    minimum: int = Field(default=1, ge=1, le=LARGEST_COHORT)
    deadline_s: float = Field(default=600.0, gt=0, le=LONGEST_DEADLINE_S)
    tags: tuple[str, ...] = Field(default=(), max_length=LARGEST_NAMES)
    without_tags: tuple[str, ...] = Field(default=(), max_length=LARGEST_NAMES)
    stale_after_s: float = Field(default=0.0, ge=0)
    min_train_windows: int = Field(default=1, ge=0)
    bytes_per_device_day: int = Field(default=0, ge=0)
    every_s: float = Field(default=0.0, ge=0)
    rounds: int = Field(default=0, ge=0, le=100_000_000)
    auto_promote: bool = True
    evaluate_every: int = Field(default=0, ge=0)

    @field_validator("base")
    @classmethod
    def _is_digest(cls, text: str) -> str:
        if not DIGEST.fullmatch(text):
            told = "64 hex digits, the base's digest (`fleet base list`), not {found}"
            raise PydanticCustomError("base-digest", told, {"found": repr(text[:DIGITS])})
        return text

    @field_validator("rule")
    @classmethod
    def _spelt_alike(cls, text: str) -> str:
        try:
            return read_rule(text).text
        except InputError as error:
            raise ValueError(error.message) from error

    @model_validator(mode="after")
    def _fits(self) -> FleetPolicy:
        if 0 < self.cohort < max(self.quorum, self.minimum):
            raise ValueError(
                f"a cohort of {self.cohort} can never send {max(self.quorum, self.minimum)} updates"
            )
        if self.over_select and not self.quorum:
            raise ValueError("over_select is beyond a quorum, and there is none")
        if self.over_select and self.cohort:
            raise ValueError("with over_select the cohort is quorum + over_select; leave cohort 0")
        if both := sorted(set(self.tags) & set(self.without_tags)):
            raise ValueError(f"no device has and has not the tag {both[0]!r}")
        return self

    @classmethod
    def parse(cls, values: Any) -> FleetPolicy:
        """Validate a mapping.

        Raises:
            InputError: ``bad-policy``, listing every problem at once.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            hint = "The fields and their ranges are in docs/service.md."
            # People type what a table has shown them, or the file itself.
            if any(each["loc"] == ("base",) for each in error.errors()):
                hint = f"A base is named by the full digest: {DIGEST_OF}; see: fleet base list"
            told = f"the policy breaks a rule: {problems_of(error)}"
            raise InputError("bad-policy", told, hint) from error

    @property
    def asked(self) -> int:
        """How many devices a round asks; 0 for all that are eligible."""
        return self.quorum + self.over_select if self.over_select else self.cohort
