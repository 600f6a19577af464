"""Tests for a change in a stream of numbers, and running means: the parts of drift detectors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from fleet.errors import InputError, UnavailableError

__all__ = ["AdwinTest", "CusumTest", "PageHinkleyTest", "Running", "Test"]

# River's objects can only be pickled, which nothing here is. What such a test remembers is kept as
# its values since its last start; when they are many, it starts again on the later half of them,
# so that the one that runs and one that is rebuilt from the log never differ.
LOG_VALUES = 4096
SLACK = 0.5


class Test(Protocol):
    """Declares a change of the mean."""

    default: ClassVar[float]

    def __init__(self, parameter: float) -> None: ...

    def update(self, value: float) -> bool:
        """Take the next value; tell whether the mean has changed."""

    def state(self) -> list[float]:
        """Return what it remembers."""

    def load(self, state: Sequence[float]) -> None:
        """Remember that, and nothing else.

        Raises:
            ValueError: When no test gave this.
        """


class CusumTest:
    """Page's two-sided cumulative sum over standardised values.

    Args:
        limit: Alarm when either sum of what exceeds the slack (half a deviation) exceeds it.
    """

    default: ClassVar[float] = 12.0

    def __init__(self, limit: float) -> None:
        self.limit, self._up, self._down = limit, 0.0, 0.0

    def update(self, value: float) -> bool:
        """See :class:`Test`."""
        self._up = max(0.0, self._up + value - SLACK)
        self._down = max(0.0, self._down - value - SLACK)
        return max(self._up, self._down) > self.limit

    def state(self) -> list[float]:
        """See :class:`Test`."""
        return [self._up, self._down]

    def load(self, state: Sequence[float]) -> None:
        """See :class:`Test`."""
        self._up, self._down = _finite(state)
        if min(self._up, self._down) < 0:
            raise ValueError("sums are not negative")


class _RiverTest(ABC):
    """One of river's detectors with a log of its values."""

    default: ClassVar[float]

    def __init__(self, parameter: float) -> None:
        self.parameter = parameter
        self.load(())

    def update(self, value: float) -> bool:
        """See :class:`Test`."""
        if len(self._log) >= LOG_VALUES:
            self.load(self._log[LOG_VALUES // 2 :])
        self._log.append(value)
        self._detector.update(value)
        return bool(self._detector.drift_detected)

    def state(self) -> list[float]:
        """See :class:`Test`."""
        return list(self._log)

    def load(self, state: Sequence[float]) -> None:
        """See :class:`Test`."""
        values = _finite(state)
        if len(values) > LOG_VALUES:
            raise ValueError(f"a log holds {LOG_VALUES} values at most, not {len(values)}")
        self._log = values
        self._detector = self._made()
        for value in values:
            self._detector.update(value)

    @abstractmethod
    def _made(self) -> Any:
        """Return a new detector of river's."""


class AdwinTest(_RiverTest):
    """River's ADWIN; the parameter is delta, below 1."""

    default: ClassVar[float] = 0.002

    def _made(self) -> Any:
        if self.parameter >= 1:
            rule = f"ADWIN's delta must be below 1, not {self.parameter}"
            raise InputError("drift-parameters", rule, "Try 1e-6.")
        return _river().ADWIN(delta=self.parameter, clock=4)


class PageHinkleyTest(_RiverTest):
    """River's Page-Hinkley without forgetting; the parameter is the limit."""

    default: ClassVar[float] = 8.0

    def _made(self) -> Any:
        return _river().PageHinkley(
            min_instances=10, delta=SLACK, threshold=self.parameter, alpha=1.0
        )


class Running:
    """Count, mean and sum of squares of vectors as they come (Welford, Technometrics 1962).

    Args:
        columns: Length of the vectors.
    """

    def __init__(self, columns: int) -> None:
        self.count = 0
        self.mean = [0.0] * columns
        self.squares = [0.0] * columns

    def add(self, values: Sequence[float]) -> list[float]:
        """Take a vector; return by what the sums of squares grew."""
        self.count += 1
        grown = []
        for column, value in enumerate(values):
            off = value - self.mean[column]
            self.mean[column] += off / self.count
            grown.append(off * (value - self.mean[column]))
            self.squares[column] += grown[-1]
        return grown

    def add_squares(self, squares: Sequence[float]) -> None:
        """Count a vector by its squares about some mean alone."""
        self.count += 1
        self.squares = [old + new for old, new in zip(self.squares, squares, strict=True)]

    def standardised(self, values: Sequence[float], others: Running, weight: int) -> list[float]:
        """Return deviations from the mean, over the spread here and, by weight, of ``others``."""
        found = []
        for value, mean, squares, theirs in zip(
            values, self.mean, self.squares, others.squares, strict=True
        ):
            borrowed = weight * theirs / max(others.count, 1)
            spread = math.sqrt((squares + borrowed) / (self.count + weight))
            # A signal that never varied has no unit: rounding must not look like a change.
            floor = 1e-6 * max(1.0, abs(mean))
            found.append((value - mean) / max(spread, floor))
        return found

    def state(self) -> list[float]:
        """Return count, means and sums of squares."""
        return [self.count, *self.mean, *self.squares]

    @classmethod
    def of(cls, columns: int, state: Sequence[float]) -> Running:
        """Make what had this state.

        Raises:
            ValueError: When nothing of so many columns had.
        """
        count, *rest = _finite(state)
        if len(rest) != 2 * columns or count < 0 or count % 1 or min(rest[columns:]) < 0:
            raise ValueError("no running mean")
        made = cls(columns)
        made.count, made.mean, made.squares = int(count), rest[:columns], rest[columns:]
        return made


def _finite(values: Sequence[float]) -> list[float]:
    found = [float(value) for value in values]
    if not all(math.isfinite(value) for value in found):
        raise ValueError("NaN or Inf")
    return found


def _river() -> Any:
    try:
        from river import drift
    except ImportError as error:
        raise UnavailableError(
            "extra-missing",
            "ADWIN and Page-Hinkley are river's, which is not installed",
            "pip install 'corefleet[device-drift]'",
        ) from error
    return drift
