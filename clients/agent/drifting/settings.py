"""``[drift]`` of the device's configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fleet.tables import Table

__all__ = ["Drift", "Signal"]

Signal = Literal["label-free", "loss"]
"""Kinds of :data:`fleet.continual.drift.DETECTORS`."""


class Drift(Table):
    """Whether the device watches its own windows for drift, and what follows from an alarm."""

    watch: bool = Field(
        default=False, description="Watch; without, nothing is computed and nothing is kept."
    )
    signals: tuple[Signal, ...] = Field(
        default=("label-free",),
        min_length=1,
        description="label-free: feature distance and doubt at the predicted class; loss: errors on"
        " windows whose label is known (extra device-drift).",
    )
    reference_windows: int = Field(
        default=512,
        ge=64,
        le=4096,
        description="First windows of the device, of which it learns what its features are like.",
    )
    test: Literal["cusum", "adwin", "page-hinkley"] = Field(
        default="cusum",
        description="What judges label-free signals; all but cusum need the extra device-drift.",
    )
    threshold: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Limit of cusum and page-hinkley in deviations, adwin's delta; 0: the test's"
        " own.",
    )
    block: int = Field(
        default=10, ge=1, le=1000, description="Windows whose label-free signals are averaged."
    )
    warm_up: int = Field(
        default=400,
        ge=10,
        le=1_000_000,
        description="Windows after a start or an alarm that label-free signals only learn from; 10"
        " blocks at least.",
    )
    loss_delta: float = Field(
        default=1e-9, gt=0, lt=1, description="Significance of ADWIN over errors."
    )
    loss_warm_up: int = Field(
        default=100,
        ge=1,
        le=1_000_000,
        description="Labelled windows after a start or an alarm in which errors raise none.",
    )
    participate: Literal["always", "drift"] = Field(
        default="always",
        description="drift: take part in rounds only after an alarm, and after joining.",
    )
    rounds: int = Field(
        default=3,
        ge=1,
        le=1000,
        description="Trainings that an alarm, or joining, is good for; a refused or failed one does"
        " not count.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Drift:
        wrong = []
        if len(set(self.signals)) < len(self.signals):
            wrong.append("signals names one twice")
        if self.warm_up < 10 * self.block:
            wrong.append(f"warm-up is {self.warm_up}, less than 10 blocks of {self.block}")
        if self.test == "adwin" and self.threshold >= 1:
            wrong.append(f"threshold is {self.threshold}, adwin's delta must be below 1")
        if self.participate == "drift" and not self.watch:
            wrong.append('participate = "drift" needs watch = true')
        if wrong:
            raise ValueError("; ".join(wrong))
        return self
