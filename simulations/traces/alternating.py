"""Spells that alternate at random, as a pure function of time and without a memory.

A renewal process would have to be walked from its beginning. Here time is cut into blocks, and in
each a stationary process begins anew: its first spell is what is left of one that time falls into,
so the long-run share of time online is the ratio of the means, exactly and at every moment, and a
question costs one block however late it is asked. The price is that spells end where blocks do,
once in ``CYCLES_PER_BLOCK`` cycles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fleet.seeds import derive_seed, generator

__all__ = ["Exponential", "Lengths", "Pareto", "Spell", "alternating", "uniform"]

CYCLES_PER_BLOCK = 256

Draws = NDArray[np.float64]


@dataclass(frozen=True)
class Spell:
    """A device is online, or offline, from ``since`` (inclusive) to ``until`` (exclusive), s."""

    online: bool
    since: float
    until: float


class Lengths(Protocol):
    """A distribution of spells, in seconds."""

    @property
    def mean(self) -> float:
        """Mean length."""
        ...

    def length(self, u: Draws) -> Draws:
        """Return the lengths at quantiles ``u`` in [0, 1)."""
        ...

    def left(self, u: float) -> float:
        """Return, at a quantile, what is left of a spell that a random moment falls into."""
        ...


@dataclass(frozen=True)
class Exponential:
    """Lengths without a memory.

    Args:
        mean: Mean length in seconds.
    """

    mean: float

    def length(self, u: Draws) -> Draws:
        """Return the lengths at quantiles ``u``."""
        return -self.mean * np.log1p(-u)

    def left(self, u: float) -> float:
        """Return what is left of a spell: as much as of a new one."""
        return -self.mean * math.log1p(-u)


@dataclass(frozen=True)
class Pareto:
    """Lengths with a heavy tail: longer than ``x`` with probability ``(least / x) ** shape``.

    Args:
        shape: Above 1, so that there is a mean.
        least: Shortest spell in seconds.
    """

    shape: float
    least: float

    @property
    def mean(self) -> float:
        """Mean length.

        >>> Pareto(2.0, 30.0).mean
        60.0
        """
        return self.shape * self.least / (self.shape - 1)

    def length(self, u: Draws) -> Draws:
        """Return the lengths at quantiles ``u``."""
        return self.least * (1 - u) ** (-1 / self.shape)

    def left(self, u: float) -> float:
        """Return what is left: its density is ``P(length > x) / mean``, integrated by hand."""
        if u < (self.shape - 1) / self.shape:
            return u * self.mean
        return float(self.least * (self.shape * (1 - u)) ** (-1 / (self.shape - 1)))


def uniform(seed: int, number: int, device: str, purpose: str) -> float:
    """Return a number in [0, 1) that is a function of its four names, see ``fleet.seeds``."""
    return (derive_seed(seed, number, device, purpose) >> 10) / 2**53


def alternating(
    online: Lengths, offline: Lengths, seed: int, device: str, at: float, purpose: str
) -> Spell:
    """Return the spell that a moment falls into.

    Args:
        online: Lengths of spells online.
        offline: Lengths of spells offline.
        seed: Root seed.
        device: Name of the device.
        at: Simulated seconds.
        purpose: What the spells are for; two purposes are independent.
    """
    cycle = online.mean + offline.mean
    block = CYCLES_PER_BLOCK * cycle
    number = math.floor(at / block)
    begins, ends = number * block, (number + 1) * block
    random = generator(seed, number, device, purpose)
    first = bool(random.random() < online.mean / cycle)
    kinds = (online, offline) if first else (offline, online)
    since = begins
    for count, end in enumerate(_ends(kinds, random)):
        until = begins + end
        if until > at:
            # Rounding may put the block's end at the very moment that was asked about.
            until = max(min(until, ends), math.nextafter(at, math.inf))
            return Spell(first == (count % 2 == 0), since, until)
        since = until
    raise AssertionError("spells go on for ever")


def _ends(kinds: tuple[Lengths, Lengths], random: np.random.Generator) -> Iterator[float]:
    """Yield when spells end, in seconds from the first one's begin, without an end."""
    total = kinds[0].left(random.random())
    yield total
    while True:
        u = random.random((CYCLES_PER_BLOCK, 2))
        lengths = np.stack([kinds[1].length(u[:, 0]), kinds[0].length(u[:, 1])], axis=1)
        for each in (total + np.cumsum(lengths)).tolist():
            yield each
            total = each
