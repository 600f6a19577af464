"""``[statistics]`` of the device's configuration."""

from __future__ import annotations

from pydantic import Field, model_validator

from fleet.tables import Table

__all__ = ["OwnStatistics"]


class OwnStatistics(Table):
    """Batch-norm statistics of the device's own windows, without labels; never sent."""

    own: bool = Field(
        default=False, description="Take them, train under them, and serve under them."
    )
    windows: int = Field(
        default=256,
        ge=2,
        le=16_384,
        description="Windows, labelled or not, that they are taken of: one in 16 of the newest, "
        "where there are as many.",
    )
    min_windows: int = Field(
        default=32, ge=2, le=16_384, description="Without as many windows there are none."
    )

    @model_validator(mode="after")
    def _agree(self) -> OwnStatistics:
        if self.min_windows > self.windows:
            raise ValueError(f"min-windows is {self.min_windows}, more than windows {self.windows}")
        return self
