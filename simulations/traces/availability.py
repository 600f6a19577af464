"""When a device is there: always, at night, for months, or in spells of any length.

Each model is a record of a trace's file and a pure function ``spell(seed, device, at)``: the same
whoever asks, in whatever order, and with nothing kept per device. Hours are of a fleet that starts
at midnight of its westernmost time zone.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulations.traces.alternating import Exponential, Pareto, Spell, alternating, uniform

__all__ = ["Always", "Availability", "Churn", "Diurnal", "ParetoSpells"]

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str = Field(min_length=1)


class Always(_Model):
    """A device is always online.

    Args:
        source: Where this is from, or that it is assumed.
    """

    kind: Literal["always"]

    @property
    def share(self) -> float:
        """Long-run share of time online."""
        return 1.0

    def spell(self, seed: int, device: str, at: float) -> Spell:
        """Return the spell that a moment falls into."""
        return Spell(True, 0.0, math.inf)


class Diurnal(_Model):
    """A device is online for some hours a day, e.g. while it charges at night.

    Args:
        starts_h: Local hour at which devices come online at the earliest.
        hours: Hours online per day.
        zones_h: Width of the fleet's time zones; each device has one of its own.
        jitter_h: Each day begins up to so much later.
        skipped: Share of days on which a device does not come.
        source: Where the figures are from, or that they are assumed.
    """

    kind: Literal["diurnal"]
    starts_h: float = Field(ge=0, lt=24)
    hours: float = Field(gt=0, le=24)
    zones_h: float = Field(0.0, ge=0, le=24)
    jitter_h: float = Field(0.0, ge=0, lt=24)
    skipped: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits_a_day(self) -> Diurnal:
        if self.hours + self.jitter_h > 24:
            raise ValueError(
                f"hours and jitter_h fit in a day, {self.hours:g} + {self.jitter_h:g} do not"
            )
        return self

    @property
    def share(self) -> float:
        """Long-run share of time online."""
        return self.hours / 24 * (1 - self.skipped)

    def spell(self, seed: int, device: str, at: float) -> Spell:
        """Return the spell that a moment falls into, or a part of one."""
        zone = self.zones_h * uniform(seed, 0, device, "trace/zone")
        first = (self.starts_h - zone) * HOUR_S
        today = math.floor((at - first) / DAY_S)
        since = first + (today - 1) * DAY_S
        for day in (today - 1, today, today + 1):
            begin = first + day * DAY_S + self._jitter(seed, device, day)
            end = begin + self.hours * HOUR_S
            if self._skips(seed, device, day) or end <= at:
                since = max(since, min(end, at))
                continue
            return Spell(True, begin, end) if begin <= at else Spell(False, min(since, at), begin)
        # Nobody comes before the day after tomorrow's first hour, and perhaps not then.
        return Spell(False, min(since, at), first + (today + 2) * DAY_S)

    def _jitter(self, seed: int, device: str, day: int) -> float:
        if not self.jitter_h:
            return 0.0
        return self.jitter_h * HOUR_S * uniform(seed, day, device, "trace/jitter")

    def _skips(self, seed: int, device: str, day: int) -> bool:
        return uniform(seed, day, device, "trace/skipped") < self.skipped


class Churn(_Model):
    """A device joins, stays away for days, and one day leaves for good.

    Args:
        founders: Share of devices that are there from the beginning.
        joins_h: Mean hours until one of the others joins.
        life_h: Mean hours between joining and leaving for good; 0 for ever.
        stays_h: Mean hours that it stays in between.
        away_h: Mean hours that it is away; 0 for never.
        source: Where the figures are from, or that they are assumed.
    """

    kind: Literal["churn"]
    founders: float = Field(1.0, ge=0, le=1)
    joins_h: float = Field(0.0, ge=0)
    life_h: float = Field(0.0, ge=0)
    stays_h: float = Field(24.0, gt=0)
    away_h: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _others_join(self) -> Churn:
        if self.founders < 1 and not self.joins_h:
            raise ValueError("joins_h is above 0 where not all devices are founders")
        return self

    @property
    def share(self) -> float:
        """Share of a device's life, from joining to leaving for good, that it is online."""
        return self.stays_h / (self.stays_h + self.away_h)

    def spell(self, seed: int, device: str, at: float) -> Spell:
        """Return the spell that a moment falls into."""
        joins = 0.0
        if uniform(seed, 0, device, "trace/founder") >= self.founders:
            joins = _exponential(self.joins_h, seed, device, "trace/joins")
        leaves = math.inf
        if self.life_h:
            leaves = joins + _exponential(self.life_h, seed, device, "trace/leaves")
        if at < joins:
            return Spell(False, 0.0, joins)
        if at >= leaves:
            return Spell(False, leaves, math.inf)
        if not self.away_h:
            return Spell(True, joins, leaves)
        stays, away = Exponential(self.stays_h * HOUR_S), Exponential(self.away_h * HOUR_S)
        found = alternating(stays, away, seed, device, at, "trace/churn")
        return Spell(found.online, max(found.since, joins), min(found.until, leaves))


class ParetoSpells(_Model):
    """A device comes and goes in spells with a heavy tail.

    Args:
        shape: Of both distributions; the nearer to 1, the longer the longest.
        least_online_s: Shortest spell online.
        least_offline_s: Shortest spell offline.
        source: Where the figures are from, or that they are assumed.
    """

    kind: Literal["pareto"]
    shape: float = Field(ge=1.05, le=100)
    least_online_s: float = Field(ge=1)
    least_offline_s: float = Field(ge=1)

    @property
    def share(self) -> float:
        """Long-run share of time online."""
        return self.least_online_s / (self.least_online_s + self.least_offline_s)

    def spell(self, seed: int, device: str, at: float) -> Spell:
        """Return the spell that a moment falls into."""
        online = Pareto(self.shape, self.least_online_s)
        offline = Pareto(self.shape, self.least_offline_s)
        return alternating(online, offline, seed, device, at, "trace/pareto")


Availability = Annotated[Always | Diurnal | Churn | ParetoSpells, Field(discriminator="kind")]


def _exponential(mean_h: float, seed: int, device: str, purpose: str) -> float:
    return Exponential(mean_h * HOUR_S).left(uniform(seed, 0, device, purpose))
