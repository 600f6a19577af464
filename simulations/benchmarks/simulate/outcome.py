"""What a side's run tells of itself: seconds of each round and of each evaluation, and scores.

A round lasts from the end of what came before it (the last round or evaluation) to the moment when
its aggregate is there; an evaluation is timed apart. Our engines are read from the times of the
files that they write, the other sides keep a :class:`Watch` and write ``outcome.json``.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.errors import RoundError
from fleet.files import write_json
from fleet.measure.f1 import macro_f1

__all__ = ["Outcome", "Watch", "of_run_folder", "read_outcome"]

FILE = "outcome.json"


@dataclass(frozen=True)
class Outcome:
    """What one run of a side came to.

    Args:
        rounds: Seconds of each round, in order.
        scores: Pooled macro-F1 by round; 0 is before the first.
    """

    rounds: tuple[float, ...]
    scores: dict[int, float]

    @property
    def seconds_per_round(self) -> float:
        """The steady state: median of all rounds but the first, or that one if it is alone."""
        return statistics.median(self.rounds[1:] or self.rounds)

    @property
    def macro_f1(self) -> float:
        """Pooled macro-F1 after the last round."""
        return self.scores[max(self.scores)]


class Watch:
    """Times the rounds of a side in its own process.

    Args:
        now: Monotonic seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._last = now()
        self.rounds: list[float] = []
        self.scores: dict[int, float] = {}

    def trained(self) -> None:
        """Note that a round's aggregate is there."""
        self.rounds.append(self._lap())

    def judged(self, number: int, counts: NDArray[np.int64]) -> None:
        """Note an evaluation's confusion counts ``(classes, classes)`` after a round."""
        self._lap()
        self.scores[number] = macro_f1(counts)

    def write(self, folder: Path) -> None:
        """Write ``outcome.json`` into a folder."""
        scores = {str(number): score for number, score in self.scores.items()}
        write_json(folder / FILE, {"rounds": self.rounds, "scores": scores})

    def _lap(self) -> float:
        before, self._last = self._last, self._now()
        return self._last - before


def read_outcome(folder: Path) -> Outcome:
    """Read what a :class:`Watch` wrote.

    Raises:
        RoundError: ``no-outcome`` when the side wrote none.
    """
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RoundError("no-outcome", f"the side wrote no {FILE}: {error}") from error
    scores = {int(number): float(score) for number, score in content["scores"].items()}
    return Outcome(tuple(map(float, content["rounds"])), scores)


def of_run_folder(folder: Path) -> Outcome:
    """Read the outcome from the records that our server wrote into a method's folder.

    Raises:
        RoundError: ``no-outcome`` when there are none.
    """
    rounds = {int(p.stem): p for p in (folder / "rounds").glob("[0-9]*.json") if p.stem.isdigit()}
    judged = {int(p.stem): p for p in (folder / "evaluations").glob("[0-9]*.json")}
    if not rounds or 0 not in judged:
        raise RoundError("no-outcome", f"{folder} holds no rounds with an evaluation before them")
    # A round is the pair (number, 0), its evaluation (number, 1): in the order in which they end.
    ends = {(number, 0): _written(path) for number, path in rounds.items()}
    ends |= {(number, 1): _written(path) for number, path in judged.items()}
    order = sorted(ends)
    seconds = tuple(ends[here] - ends[before] for before, here in pairwise(order) if here[1] == 0)
    return Outcome(seconds, {number: _score(path) for number, path in sorted(judged.items())})


def _written(path: Path) -> float:
    return path.stat().st_mtime_ns / 1e9


def _score(path: Path) -> float:
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    return float(content["macro_f1"])
