"""What the tables of all scenarios say of our strategies, in counts of scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simulations.benchmarks.continual.summary import LIGHT_SHARE, REFERENCES, Table, is_ours

__all__ = ["Verdict", "verdicts"]

NEAR = 0.01


@dataclass(frozen=True)
class Verdict:
    """In how many scenarios one of our strategies holds its own.

    A strategy that sends more than the limit, or lacks a block, is ahead of nobody.

    Args:
        strategy: Ours.
        first: Ahead of every other's at few bytes on average F1 over time.
        first_worst: The same on worst-decile F1.
        first_both: Both.
        near: At most :data:`NEAR` behind the best of all others on average F1 over time.
    """

    strategy: str
    first: int
    first_worst: int
    first_both: int
    near: int

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def verdicts(tables: Sequence[Table]) -> list[Verdict]:
    """Return a verdict for each of our strategies."""
    names = dict.fromkeys(line.strategy for table in tables for line in table.lines)
    return [_verdict(name, tables) for name in names if is_ours(name)]


def _verdict(name: str, tables: Sequence[Table]) -> Verdict:
    first = [_first(name, table, "average_f1") for table in tables]
    worst = [_first(name, table, "worst_decile_f1") for table in tables]
    both = [a and b for a, b in zip(first, worst, strict=True)]
    near = [_near(name, table) for table in tables]
    return Verdict(name, sum(first), sum(worst), sum(both), sum(near))


def _first(name: str, table: Table, metric: str) -> bool:
    scores = _scores(table, metric, light=True)
    rivals = [score for rival, score in scores.items() if not is_ours(rival)]
    return name in scores and bool(rivals) and scores[name] > max(rivals)


def _near(name: str, table: Table) -> bool:
    scores = _scores(table, "average_f1", light=False)
    rivals = [score for rival, score in scores.items() if not is_ours(rival)]
    return name in scores and bool(rivals) and scores[name] >= max(rivals) - NEAR


def _scores(table: Table, metric: str, *, light: bool) -> dict[str, float]:
    return {
        line.strategy: line.mean(metric)
        for line in table.lines
        if line.blocks == table.blocks
        and line.strategy not in REFERENCES
        and line.stats[metric] is not None
        and (not light or line.mean("bytes_share") <= LIGHT_SHARE)
    }
