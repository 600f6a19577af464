"""What of continual learning a device does; each part can be off."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleet.errors import InputError
from fleet.federate.records import LARGEST_DISTIL, LARGEST_PULL, problems_of

__all__ = ["ContinualOptions"]


class ContinualOptions(BaseModel):
    """The parts that a device runs beside plain local training.

    Args:
        replay_bytes: Budget of the replay buffer; 0 for none.
        replay_encoding: How windows are kept in it.
        replay_share: Windows of it that join a round, as a multiple of the fresh ones.
        replay_mix: ``fresh-first``: all fresh windows, and so many replayed ones; ``uniform``: as
            many in all, drawn alike from fresh and held ones.
        anchor: Strength of L2 to the release (FedProx's proximal term); 0 for none.
        ewc: Strength of elastic weight consolidation over core entries; 0 for none.
        ewc_keep: What of the Fisher information is kept from release to release.
        distil: Strength of distillation from the release; 0 for none.
        calibrate: ``adabn`` for a device's own batch-norm statistics, ``none`` for the fleet's.
        calibrate_windows: The last windows, labelled or not, that the statistics are taken of.
        pseudo: Most pseudo-labels in a round, as a multiple of the labelled windows; 0 for none.
        pseudo_threshold: Confidence that one needs.
        pseudo_precision: Precision on the device's own labelled windows below which none are used
            (lower bound of its 95 % interval).
        personal: Whether a private core is trained on top of the fleet's.
        personal_epochs: Passes over the device's windows after each release.
        personal_windows: Most windows that it is trained on after a release, fresh and replayed.
        personal_rate: Its learning rate as a multiple of the plan's.
        personal_anchor: Pull of the private core towards zero.
        watch: Whether its drift detector runs, also where nothing follows from it.
        trigger: ``always``; ``drift``: train and send only for some rounds after an alarm;
            ``every``: in one period of so many, a fixed schedule to compare with.
        trigger_rounds: Rounds that an alarm lasts.
        trigger_every: Periods from one round of a fixed schedule to the next.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    replay_bytes: int = Field(0, ge=0, le=2**34)
    replay_encoding: Literal["int8", "float16", "float32"] = "int8"
    replay_share: float = Field(1.0, ge=0, le=100)
    replay_mix: Literal["fresh-first", "uniform"] = "fresh-first"
    anchor: float = Field(0.0, ge=0, le=LARGEST_PULL)
    ewc: float = Field(0.0, ge=0, le=LARGEST_PULL)
    ewc_keep: float = Field(0.9, ge=0, le=1)
    distil: float = Field(0.0, ge=0, le=LARGEST_DISTIL)
    calibrate: Literal["none", "adabn"] = "none"
    calibrate_windows: int = Field(256, ge=2, le=100_000)
    pseudo: float = Field(0.0, ge=0, le=100)
    pseudo_threshold: float = Field(0.9, gt=0, le=1)
    pseudo_precision: float = Field(0.8, ge=0, le=1)
    personal: bool = False
    personal_epochs: int = Field(2, ge=1, le=100)
    personal_windows: int = Field(192, ge=1, le=1_000_000)
    personal_rate: float = Field(0.5, gt=0, le=100)
    personal_anchor: float = Field(0.01, ge=0, le=1e6)
    watch: bool = False
    trigger: Literal["always", "drift", "every"] = "always"
    trigger_rounds: int = Field(3, ge=1, le=1000)
    trigger_every: int = Field(3, ge=1, le=1000)

    @classmethod
    def parse(cls, values: Any) -> ContinualOptions:
        """Validate a mapping.

        Raises:
            InputError: ``continual-options``, listing every problem at once.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(
                "continual-options",
                f"the continual options break a rule: {problems_of(error)}",
                "The options and their ranges are in docs/continual.md.",
            ) from error

    @property
    def watches(self) -> bool:
        """Whether the drift detector runs."""
        return self.watch or self.trigger == "drift"

    @property
    def guarded(self) -> bool:
        """Whether local training has a gradient beside that of the cross-entropy."""
        return bool(self.anchor or self.ewc or self.distil)

    @property
    def alone(self) -> bool:
        """Whether local training takes a second pass, which no cohort has."""
        return bool(self.distil)
