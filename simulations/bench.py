"""Measuring: both sides in one process, interleaved, medians and spread.

A benchmark is a set of sides, each a function that does the same work once. Sides take turns, so
that a machine whose speed drifts is the same for all of them.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simulations.versions import machine, versions

__all__ = ["Measurement", "header", "measure", "report"]


@dataclass(frozen=True)
class Measurement:
    """Times of one side in seconds per call."""

    median: float
    lowest: float
    highest: float
    runs: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Measurement:
        """Summarise times in seconds, at least one."""
        return cls(statistics.median(times), min(times), max(times), len(times))


def measure(sides: Mapping[str, Callable[[], object]], runs: int = 7) -> dict[str, Measurement]:
    """Time each side ``runs`` times in turn, after one warm-up each."""
    for side in sides.values():
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(runs):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - start)
    return {name: Measurement.of(found) for name, found in times.items()}


def header() -> dict[str, Any]:
    """Return what every figure comes with: command, machine and versions."""
    return {
        "command": " ".join(["fleet", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
    }


def report(
    measured: Mapping[str, Measurement], against: str, per: Mapping[str, float]
) -> dict[str, Any]:
    """Return a benchmark's record: command, machine, versions, figures and ratios.

    Args:
        measured: By side.
        against: The side that ratios are relative to.
        per: Units of work per call by name, e.g. ``{"updates": 1000}``.
    """
    reference = measured[against].median
    return header() | {
        "work": dict(per),
        "sides": {
            name: asdict(m) | {"ratio": round(m.median / reference, 3)}
            for name, m in measured.items()
        },
        "against": against,
    }
