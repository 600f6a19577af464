"""From the records of cells to tables: means, ranks at few bytes, and paired differences.

Nothing is read or written here. A *block* is a data set and a seed: strategies of one block share
people, windows, labels, changes and base, so they are compared block by block.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["METRICS", "Line", "Paired", "Stat", "Table", "is_ours", "paired", "summarise"]

Record = Mapping[str, Any]
Block = tuple[str, int]
Values = dict[str, float]

FULL, JOINT = "fedavg-full", "core-joint"
# It keeps every window: what others are measured against, and no rival.
REFERENCES = (JOINT,)
LIGHT_SHARE = 0.02
CONFIDENCE = 0.95
METRICS = (
    *("average_f1", "worst_decile_f1", "last_f1", "backward_transfer", "forward_transfer"),
    *("forgetting", "old_f1", "bytes_share", "cpu_seconds", "labels"),
)
"""``forgetting`` is the mean over classes; ``old_f1`` the last F1 of the classes of the
start, where others came; ``bytes_share`` is of ``fedavg-full``'s bytes up in the same block."""


@dataclass(frozen=True)
class Stat:
    """Mean and standard deviation over ``blocks`` blocks; no deviation of one alone."""

    mean: float
    sd: float | None
    blocks: int


@dataclass(frozen=True)
class Line:
    """One strategy over one scenario.

    Args:
        strategy: Its name.
        stats: By metric; None where it is not defined.
        blocks: Blocks that it has.
        rank: Among strategies that send at most :data:`LIGHT_SHARE`, by average F1 over time; None
            for others, for references, and where a block is missing.
        worst_rank: The same by worst-decile F1.
    """

    strategy: str
    stats: Mapping[str, Stat | None]
    blocks: int
    rank: int | None = None
    worst_rank: int | None = None

    def mean(self, metric: str) -> float:
        """Return a metric's mean, NaN where it is not defined."""
        found = self.stats[metric]
        return math.nan if found is None else found.mean


@dataclass(frozen=True)
class Paired:
    """The difference of two strategies on the blocks that both have.

    Args:
        strategy: The one.
        rival: The other, which is subtracted.
        metric: Of what.
        mean: Mean over blocks.
        low: Lower end of the paired t interval of 95 %; None with fewer than two blocks.
        high: Upper end.
        blocks: How many.
        sets_ahead: Data sets whose own mean is above zero.
        sets: Data sets.
    """

    strategy: str
    rival: str
    metric: str
    mean: float
    low: float | None
    high: float | None
    blocks: int
    sets_ahead: int
    sets: int


@dataclass(frozen=True)
class Table:
    """One scenario.

    Args:
        scenario: Its name.
        blocks: Blocks that any strategy has.
        lines: Strategies, in the order of the records.
        against_light: Ours less the best other that sends at most :data:`LIGHT_SHARE`, by metric.
        against_all: Ours less the best other, whatever it sends.
        against_joint: Old classes' last F1, less that of all windows kept; for new classes.
    """

    scenario: str
    blocks: int
    lines: tuple[Line, ...]
    against_light: tuple[Paired, ...]
    against_all: tuple[Paired, ...]
    against_joint: tuple[Paired, ...]

    def as_record(self) -> dict[str, Any]:
        """Return the table as JSON."""
        return asdict(self)


def is_ours(name: str) -> bool:
    """Tell whether a strategy is one of ours."""
    return name.split("+")[0] == "core"


def summarise(records: Sequence[Record]) -> list[Table]:
    """Return one table per scenario, in the order of the records.

    Args:
        records: Of cells; refused ones are passed over.
    """
    usable = [record for record in records if record["row"] is not None]
    return [
        _table(name, [record for record in usable if record["scenario"] == name])
        for name in dict.fromkeys(record["scenario"] for record in usable)
    ]


def paired(
    one: Mapping[Block, Values], other: Mapping[Block, Values], names: tuple[str, str], metric: str
) -> Paired | None:
    """Compare two strategies block by block; None where they share no block with the metric.

    Args:
        one: Values of a strategy by block.
        other: Those of its rival.
        names: Of both.
        metric: What to compare.
    """
    gaps = {
        block: one[block][metric] - other[block][metric]
        for block in one
        if metric in one[block] and metric in other.get(block, {})
    }
    if not gaps:
        return None
    by_set: dict[str, list[float]] = {}
    for (data, _), gap in gaps.items():
        by_set.setdefault(data, []).append(gap)
    mean, reach = statistics.fmean(gaps.values()), _reach(list(gaps.values()))
    return Paired(
        *names,
        metric,
        mean,
        None if reach is None else mean - reach,
        None if reach is None else mean + reach,
        len(gaps),
        sum(statistics.fmean(own) > 0 for own in by_set.values()),
        len(by_set),
    )


def _table(scenario: str, records: Sequence[Record]) -> Table:
    full = {_block(r): r["row"]["bytes_up"] for r in records if r["strategy"] == FULL}
    values: dict[str, dict[Block, Values]] = {}
    for record in records:
        block = _block(record)
        values.setdefault(record["strategy"], {})[block] = _values(record, full.get(block, 0))
    blocks = len({_block(record) for record in records})
    lines = [_line(name, own) for name, own in values.items()]
    whole = [ln for ln in lines if ln.blocks == blocks and ln.strategy not in REFERENCES]
    light = [ln for ln in whole if ln.mean("bytes_share") <= LIGHT_SHARE]
    ranks = {m: _ranks(light, m) for m in ("average_f1", "worst_decile_f1")}
    ranked = tuple(
        Line(
            ln.strategy,
            ln.stats,
            ln.blocks,
            ranks["average_f1"].get(ln.strategy),
            ranks["worst_decile_f1"].get(ln.strategy),
        )
        for ln in lines
    )
    ours = [name for name in values if is_ours(name)]
    joint = [(name, JOINT, "old_f1") for name in ours if JOINT in values]
    return Table(
        scenario,
        blocks,
        ranked,
        _compared(values, _against_best(ours, light)),
        _compared(values, _against_best(ours, whole)),
        _compared(values, joint),
    )


def _against_best(ours: Sequence[str], lines: Iterable[Line]) -> list[tuple[str, str, str]]:
    """Pair ours with the rival whose mean is best: chosen after the fact, which favours it."""
    others = [line for line in lines if not is_ours(line.strategy)]
    found = []
    for metric in ("average_f1", "worst_decile_f1"):
        if rivals := [line for line in others if line.stats[metric] is not None]:
            best = max(rivals, key=lambda line: line.mean(metric))
            found += [(name, best.strategy, metric) for name in ours]
    return found


def _compared(
    values: Mapping[str, Mapping[Block, Values]], pairs: Iterable[tuple[str, str, str]]
) -> tuple[Paired, ...]:
    found = (paired(values[a], values[b], (a, b), metric) for a, b, metric in pairs)
    return tuple(each for each in found if each is not None)


def _line(name: str, own: Mapping[Block, Values]) -> Line:
    stats: dict[str, Stat | None] = {}
    for metric in METRICS:
        known = [values[metric] for values in own.values() if metric in values]
        sd = statistics.stdev(known) if len(known) > 1 else None
        stats[metric] = Stat(statistics.fmean(known), sd, len(known)) if known else None
    return Line(name, stats, len(own))


def _values(record: Record, full_bytes: int) -> Values:
    """Return the metrics of a cell that are defined."""
    row = record["row"]
    found = {name: row[name] for name in METRICS if name in row}
    found["forgetting"] = _mean(row["forgetting"].values())
    if record["start_classes"] < len(record["labels"]):
        found["old_f1"] = _mean(row["class_f1"][-1][: record["start_classes"]])
    if full_bytes:
        found["bytes_share"] = row["bytes_up"] / full_bytes
    return {name: float(value) for name, value in found.items() if value is not None}


def _ranks(lines: Iterable[Line], metric: str) -> dict[str, int]:
    known = (line for line in lines if line.stats[metric] is not None)
    ordered = sorted(known, key=lambda line: -line.mean(metric))
    return {line.strategy: place for place, line in enumerate(ordered, 1)}


def _reach(gaps: Sequence[float]) -> float | None:
    from scipy.stats import t

    if len(gaps) < 2:
        return None
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(gaps) - 1))
    return quantile * statistics.stdev(gaps) / math.sqrt(len(gaps))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _block(record: Record) -> Block:
    return record["data"], record["seed"]
