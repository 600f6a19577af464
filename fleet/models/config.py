"""What names a backbone: a frozen record that travels with the base."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ModelConfig"]


class ModelConfig(BaseModel):
    """Name and sizes of a backbone.

    Args:
        name: Registered name, see ``fleet.models.registry``.
        channels: Sensor channels of a window.
        classes: Outputs of the head.
        window: Samples per window.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    channels: int = Field(ge=1, le=4096)
    classes: int = Field(ge=2, le=4096)
    window: int = Field(ge=8, le=65536)
