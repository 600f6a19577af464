"""``[personal]`` in ``device.toml``: whether a private core is learned, and how."""

from __future__ import annotations

from pydantic import Field

from fleet.tables import Table

__all__ = ["Personal"]


class Personal(Table):
    """The private core: learned on top of the fleet's release, served here alone, never sent."""

    on: bool = Field(default=False, description="Learn a private core, and serve it if it helps.")
    epochs: int = Field(
        default=2, ge=1, le=100, description="Passes over the chosen windows after each release."
    )
    rate: float = Field(
        default=0.5,
        gt=0,
        le=100,
        description="Its learning rate, as a multiple of the last plan's.",
    )
    anchor: float = Field(
        default=0.01, ge=0, le=1e6, description="Pull of the private core towards zero."
    )
    windows: int = Field(
        default=192,
        ge=1,
        le=1_000_000,
        description="Most windows that it is trained on after a release.",
    )
    min_windows: int = Field(
        default=40,
        ge=5,
        le=1_000_000,
        description="Labelled windows that it takes to learn one; a fifth is kept back to judge.",
    )
