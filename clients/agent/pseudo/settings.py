"""``[pseudo-labels]`` of the device's configuration."""

from __future__ import annotations

from pydantic import Field

from fleet.tables import Table

__all__ = ["PseudoLabels"]


class PseudoLabels(Table):
    """Windows without a label that the release's own network labels, to train on; never sent."""

    on: bool = Field(default=False, description="Let trainings for the fleet have them.")
    share: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="Most of them in a training, as a multiple of the labelled windows.",
    )
    threshold: float = Field(
        default=0.9, gt=0, le=1, description="Probability of the likeliest class that one needs."
    )
    precision: float = Field(
        default=0.8,
        ge=0,
        lt=1,
        description="None are used unless the network is right so often, where it is as sure, on "
        "labelled windows that are held out (lower end of the 95 % interval: at 0.8 it takes 11 "
        "such windows, at 0.9 25).",
    )
    windows: int = Field(
        default=1024,
        ge=1,
        le=16_384,
        description="Windows without a label that are looked at, the newest; and as many of those "
        "held out.",
    )
