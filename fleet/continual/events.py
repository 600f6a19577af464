"""What may happen to a fleet over months: the ``[[events]]`` tables of a scenario."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from fleet.errors import InputError
from fleet.har.shifts import parse

__all__ = [
    "LARGEST_PERIODS",
    "Classes",
    "Event",
    "Join",
    "Leave",
    "Prior",
    "Record",
    "ShiftEvent",
]

LARGEST_PERIODS = 10_000

Share = Annotated[float, Field(gt=0, le=1)]


class Record(BaseModel):
    """A table of a scenario file: frozen, closed, only finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Event(Record):
    at: int = Field(ge=0, lt=LARGEST_PERIODS)


class ShiftEvent(_Event):
    """Sensors change.

    Shifts may overlap. Sizes of one kind at one device in one period add up, as one seed gives one
    device one direction per kind; :class:`fleet.continual.scenario.Scenario` refuses sums beyond
    the kind's range.

    Args:
        at: First period.
        shift: In the forms of ``fleet.har.shifts``, e.g. ``remount:35+gain:20``.
        until: Period from which it has its full size; it grows linearly from 0 at ``at``. Left
            out, it is whole at once. Not for placements, which have no small ones.
        ends: Period at which it is gone again; left out, it stays.
        share: Share of the fleet's devices, drawn by the seed.
    """

    kind: Literal["shift"]
    shift: str
    until: int | None = Field(None, ge=1, lt=2 * LARGEST_PERIODS)
    ends: int | None = Field(None, ge=1, le=LARGEST_PERIODS)
    share: Share = 1.0

    @field_validator("shift")
    @classmethod
    def _is_one(cls, text: str) -> str:
        try:
            found = parse(text)
        except InputError as error:
            raise ValueError(error.message) from error
        if found is None:
            raise ValueError("a shift of an event is one, not 'none'")
        return text

    @model_validator(mode="after")
    def _in_order(self) -> ShiftEvent:
        problems = []
        if self.until is not None and self.until <= self.at:
            problems.append(f"until must come after at ({self.at}), not at {self.until}")
        if self.ends is not None and self.ends <= self.at:
            problems.append(f"ends must come after at ({self.at}), not at {self.ends}")
        if self.until is not None and "placement" in dict(self.pieces):
            problems.append("a placement cannot grow: leave out until")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def pieces(self) -> tuple[tuple[str, float], ...]:
        """Kinds and full sizes, in the order of the text.

        >>> ShiftEvent(kind="shift", shift="remount:35+gain:20", at=0).pieces
        (('remount', 35.0), ('gain', 20.0))
        """
        named = (one.split(":") for one in self.shift.split("+"))
        return tuple((kind, float(size)) for kind, size in named)

    def grown(self, period: int) -> float:
        """Return how much of it is there, 0 to 1.

        >>> event = ShiftEvent(kind="shift", shift="gain:20", at=2, until=6, ends=9)
        >>> [event.grown(period) for period in (1, 2, 3, 6, 8, 9)]
        [0.0, 0.0, 0.25, 1.0, 1.0, 0.0]
        """
        if period < self.at or (self.ends is not None and period >= self.ends):
            return 0.0
        if self.until is None:
            return 1.0
        return min((period - self.at) / (self.until - self.at), 1.0)


class Classes(_Event):
    """Further classes appear, fleet-wide.

    Args:
        at: First period in which they are seen.
        count: How many; 0 for all that are left.
    """

    kind: Literal["classes"]
    count: int = Field(ge=0, le=1000)


class Prior(_Event):
    """Habits change: each device's class mix is drawn anew, until the next such event.

    The mix comes from a Dirichlet distribution about the proportions of the device's person, as
    Hsu et al., arXiv:1909.06335, draw one about a set's.

    Args:
        at: First period of the new mix.
        concentration: Of the Dirichlet distribution; small ones leave few classes.
        every: Periods after which it is drawn once more, and so on; left out, it stays.
    """

    kind: Literal["prior"]
    concentration: float = Field(ge=0.01, le=1e6)
    every: int | None = Field(None, ge=1, le=LARGEST_PERIODS)


class _Move(_Event):
    # Nobody comes or goes before there is anybody.
    at: int = Field(ge=1, lt=LARGEST_PERIODS)


class Join(_Move):
    """Devices come: they are not there before.

    Args:
        at: Their first period, from 1.
        share: Share of the fleet's devices, drawn by the seed; no device joins twice.
    """

    kind: Literal["join"]
    share: Share


class Leave(_Move):
    """Devices go for good.

    Args:
        at: The first period without them, from 1.
        share: Share of the fleet's devices, drawn by the seed among those that are there.
    """

    kind: Literal["leave"]
    share: Share


Event = Annotated[ShiftEvent | Classes | Prior | Join | Leave, Field(discriminator="kind")]
