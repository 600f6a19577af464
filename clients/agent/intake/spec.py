"""What an intake must know: which column is which channel, in which unit, at which rate."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from clients.agent.store.records import SplitRule
from fleet.errors import InputError
from fleet.har.windows import STANDARD_GRAVITY

__all__ = ["GAP_PERIODS", "TIME_UNITS", "UNITS", "IntakeSpec", "factor_of", "spec_of"]

GAP_PERIODS = 5
"""Missing samples beyond so many periods of the base's rate end a segment."""
DENSE = 1.25
"""From this multiple of the base's rate on, samples are averaged and not interpolated."""
HELD_OUT = 10  # windows of a block of four times as many
LARGEST_WINDOW = 65_536
Side = Literal["blocks", "train", "held-out"]
TIME_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
UNITS = {
    "m/s^2": ("acceleration", 1.0),
    "g": ("acceleration", STANDARD_GRAVITY),
    "mg": ("acceleration", STANDARD_GRAVITY / 1000),
    "rad/s": ("turning rate", 1.0),
    "deg/s": ("turning rate", math.pi / 180),
    "uT": ("magnetic field", 1.0),
    "gauss": ("magnetic field", 100.0),
}


class IntakeSpec(BaseModel):
    """How a source's samples become the base's windows.

    Args:
        columns: The source's column for each channel of the base, in the base's order.
        factors: What each column is multiplied by: unit and sign; 1 leaves every bit alone.
        rate_hz: The base's rate.
        window: Samples per window.
        stride: Samples between the starts of neighbouring windows.
        source_rate_hz: The source's nominal rate; 0 where it is near the base's.
        max_gap_s: A longer time between samples ends the segment; 0 takes ``GAP_PERIODS`` periods
            of the slower rate.
        time_column: Name of the column that holds the time.
        time_unit: Its unit; seconds since the epoch.
        dtype: What windows are stored as; float16 halves them and rounds to 3 digits.
        split: Which side of the split windows fall on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    columns: tuple[str, ...] = Field(min_length=1, max_length=4096)
    factors: tuple[float, ...]
    rate_hz: float = Field(gt=0, le=100_000)
    window: int = Field(ge=1, le=LARGEST_WINDOW)
    stride: int = Field(ge=1)
    source_rate_hz: float = Field(default=0.0, ge=0)
    max_gap_s: float = Field(default=0.0, ge=0)
    time_column: str = "time"
    time_unit: Literal["s", "ms", "us", "ns"] = "s"
    dtype: Literal["float16", "float32"] = "float32"
    split: SplitRule = Field(default_factory=SplitRule)

    @model_validator(mode="after")
    def _sizes_agree(self) -> IntakeSpec:
        wrong = []
        if len(self.factors) != len(self.columns):
            wrong.append(f"{len(self.factors)} factors for {len(self.columns)} columns")
        if self.stride > self.window:
            wrong.append(f"stride is {self.stride}, more than window {self.window}")
        if self.split.kind == "blocks" and self.reach >= self.split.held_out:
            wrong.append(
                f"a window shares samples with {self.reach} before it, so a block must hold out"
                f" more than {self.split.held_out}"
            )
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def reach(self) -> int:
        """How many windows before one share samples with it."""
        return math.ceil(self.window / self.stride) - 1

    @property
    def gap_s(self) -> float:
        """The longest time between two samples of one segment."""
        slower = min(self.rate_hz, self.source_rate_hz or self.rate_hz)
        return self.max_gap_s or GAP_PERIODS / slower

    @property
    def averaged(self) -> bool:
        """Whether the source is so dense that interpolation would alias."""
        return self.source_rate_hz > DENSE * self.rate_hz

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over all fields."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]


class OfBase(Protocol):
    """What is needed of a base's record."""

    @property
    def channels(self) -> tuple[tuple[str, str], ...]:
        """Name and unit of each channel."""

    @property
    def rate_hz(self) -> float:
        """Samples per second."""

    @property
    def window(self) -> int:
        """Samples per window."""

    @property
    def stride(self) -> int:
        """Samples between the starts of neighbouring windows."""


def spec_of(
    base: OfBase,
    *,
    columns: Sequence[str] = (),
    units: Sequence[str] = (),
    axes: Mapping[str, str] | None = None,
    source_rate_hz: float = 0.0,
    time_column: str = "time",
    time_unit: Literal["s", "ms", "us", "ns"] = "s",
    split: Side = "blocks",
) -> IntakeSpec:
    """Fit a sensor to a base.

    Args:
        base: The base's record.
        columns: The sensor's columns; none: those of the base, in its units.
        units: Unit of each.
        axes: Channel of the base to column of the sensor, a leading minus turns the axis; a channel
            that is not named takes the column of its own name.
        source_rate_hz: The sensor's nominal rate; 0 where it is near the base's.
        time_column: Name of the column that holds the time.
        time_unit: Its unit.
        split: Which side of the split windows fall on, see :class:`SplitRule`.

    Raises:
        InputError: ``axes-unfit`` with every channel that has no column or no fitting unit.
    """
    given = dict(zip(columns, units, strict=True)) if columns else dict(base.channels)
    mapped = _mapped(base, given, axes or {})
    # Blocks grow with the overlap, so that borders never eat up what is held out.
    held_out = max(HELD_OUT, 2 * math.ceil(base.window / base.stride))
    return IntakeSpec(
        columns=tuple(column for column, _ in mapped),
        factors=tuple(factor for _, factor in mapped),
        rate_hz=base.rate_hz,
        window=base.window,
        stride=base.stride,
        source_rate_hz=source_rate_hz,
        time_column=time_column,
        time_unit=time_unit,
        split=SplitRule(kind=split, block=4 * held_out, held_out=held_out),
    )


def _mapped(
    base: OfBase, given: Mapping[str, str], axes: Mapping[str, str]
) -> list[tuple[str, float]]:
    """Return column and factor of each channel; ``given`` has the unit of each column."""
    mapped, problems = [], []
    for channel, unit in base.channels:
        text = axes.get(channel, channel)
        # A column may be called "-w": what is a name is no sign.
        column = text if text in given else text.lstrip("+-")
        sign = -1.0 if column != text and text.startswith("-") else 1.0
        if column not in given:
            problems.append(f"{channel}: the sensor has no column {column!r}")
            continue
        try:
            mapped.append((column, sign * factor_of(given[column], unit)))
        except InputError as error:
            problems.append(f"{channel}: {error.message}")
    if problems:
        raise InputError(
            "axes-unfit",
            "the sensor does not fit the base: " + "; ".join(problems),
            "Name columns, units and axes under [intake] in device.toml.",
        )
    return mapped


def factor_of(given: str, wanted: str) -> float:
    """Return what turns a value in one unit into another.

    Raises:
        InputError: ``unit-unfit`` for units that are unknown or of another kind.

    >>> factor_of("g", "m/s^2"), factor_of("rad/s", "rad/s")
    (9.80665, 1.0)
    """
    if given == wanted:
        return 1.0
    kinds = [UNITS.get(unit, (unit, 0.0)) for unit in (given, wanted)]
    if kinds[0][0] != kinds[1][0]:
        raise InputError("unit-unfit", f"{given} cannot be turned into {wanted}")
    return kinds[0][1] / kinds[1][1]
