"""What the cells of a grid come to: means, spreads, paired differences, time to full's score.

Nothing is read or written here. A cell that diverged or was refused has no score; it is counted
and left out of every mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from simulations.benchmarks.peft.rows import (
    FULL,
    Condition,
    Curve,
    Paired,
    Place,
    Record,
    Row,
    Score,
    Table,
    Variant,
    condition_of,
    place_of,
    variant_of,
)

__all__ = ["SHARES", "paired", "ranking", "steps_to", "summarise"]

Key = TypeVar("Key")
SHARES = (0.85, 0.9)
"""Shares of full fine-tuning's score whose first steps are looked up."""


def summarise(
    records: Sequence[Record], costs: Sequence[Record] = (), reference: Variant = FULL
) -> list[Table]:
    """Return one table per heading and condition, in the order of the records.

    Args:
        records: Cells.
        costs: What a step costs, for times; may be empty.
        reference: What others are compared with.
    """
    tables = []
    for setting, own in _grouped(records, lambda r: str(r["setting"])).items():
        cells = [*_shared(records, setting, own, reference), *own]
        for condition, members in _grouped(cells, condition_of).items():
            tables.append(_table(setting, condition, members, costs, reference))
    return tables


def paired(records: Iterable[Record], variant: Variant, reference: Variant = FULL) -> Paired:
    """Compare two variants on the cells that both have a score for."""
    sides: dict[Variant, dict[Any, float]] = {variant: {}, reference: {}}
    for r in records:
        if (side := variant_of(r)) in sides and r["macro_f1"] is not None:
            sides[side][place_of(r), r["fold"], r["seed"], condition_of(r)] = r["macro_f1"]
    mine, theirs = sides[variant], sides[reference]
    clusters: dict[Any, list[float]] = {}
    for unit in mine.keys() & theirs.keys():
        # Seeds of one person are no independent witnesses: they are averaged first.
        clusters.setdefault(unit[:2], []).append(mine[unit] - theirs[unit])
    means = [statistics.fmean(c) for c in clusters.values()]
    deviation = _std(means)
    return Paired(
        _mean(means),
        None if deviation is None else deviation / math.sqrt(len(means)),
        len(means),
        sum(map(len, clusters.values())),
    )


def ranking(table: Table, variant: Variant) -> list[tuple[Row, float]]:
    """Rank the variants that train no larger share than ``variant``, the best first.

    A variant without a score on one of the sets and backbones that ``variant`` covers is left out:
    means over different columns cannot be compared.
    """
    given = table.row(variant)
    if given is None or given.overall.trained_share is None:
        return []
    places = [p for p, s in given.scores.items() if s.mean is not None]
    limit = given.overall.trained_share * (1 + 1e-9)
    found = []
    for row in table.rows:
        share = row.overall.trained_share
        scores = [row.scores[p].mean for p in places if p in row.scores]
        known = [s for s in scores if s is not None]
        if known and len(known) == len(places) and share is not None and share <= limit:
            found.append((row, statistics.fmean(known)))
    return sorted(found, key=lambda item: -item[1])


def steps_to(curve: Curve, target: float) -> float | None:
    """Return the first step at which a curve is at ``target``, straight between its points."""
    if curve and curve[0][1] >= target:
        return float(curve[0][0])
    for (a, low), (b, high) in pairwise(curve):
        if high >= target:
            return a + (b - a) * (target - low) / (high - low)
    return None


def _table(
    setting: str,
    condition: Condition,
    cells: Sequence[Record],
    costs: Sequence[Record],
    reference: Variant,
) -> Table:
    places = tuple(dict.fromkeys(map(place_of, cells)))
    variants = _grouped(cells, variant_of)
    against = _usable(variants.get(reference, ()))
    rows = []
    for variant, members in variants.items():
        by_place = _grouped(members, place_of)
        targets = {p: _target(by_place[p], against) for p in by_place}
        paces = {p: _pace(costs, p, variant) for p in by_place}
        scores = {p: _score(by_place[p], targets[p], paces[p]) for p in places if p in by_place}
        covered = [p for p, s in scores.items() if s.mean is not None]
        overall = _overall(
            scores, _all_or_none([targets[p] for p in covered]), [paces[p] for p in covered]
        )
        difference = paired(cells, variant, reference)
        rows.append(Row(variant, scores, overall, len(covered), difference))
    rows.sort(key=lambda r: (r.overall.trained_share is None, r.overall.trained_share or 0.0))
    leading = next((v for v in variants if v.method == "core"), None)
    return Table(setting, condition, places, tuple(rows), leading)


def _score(cells: Sequence[Record], target: float | None, pace: float | None) -> Score:
    usable = _usable(cells)
    attached = [r for r in cells if not r["refused"]]
    by_seed = _grouped(usable, lambda r: int(r["seed"])).values()
    by_fold = _grouped(usable, lambda r: int(r["fold"])).values()
    curve = _mean_curve([[(s, f1) for s, f1 in r["curve"]] for r in usable])
    merging = {bool(r["merges"]) for r in usable}
    reached = {share: _reach(curve, share, target) for share in SHARES}
    return Score(
        mean=_mean([r["macro_f1"] for r in usable]),
        fold_std=_std([_f1(c) for c in by_fold]),
        # A seed that lacks a person is a mean over other people: it says nothing of seeds.
        seed_std=_std([_f1(c) for c in by_seed if len(c) == max(map(len, by_seed))]),
        before=curve[0][1] if curve and curve[0][0] == 0 else None,
        curve=curve,
        cells=len(cells),
        refused=len(cells) - len(attached),
        reasons=tuple(dict.fromkeys(str(r["refused"]) for r in cells if r["refused"])),
        diverged=len(attached) - len(usable),
        trained_share=_mean([r["trained_parameters"] / r["total_parameters"] for r in attached]),
        bytes=_mean([float(r["bytes"]) for r in attached]),
        merges=merging.pop() if len(merging) == 1 else None,
        steps_to=reached,
        full_steps_to=_times(reached, pace),
    )


def _overall(
    scores: Mapping[Place, Score], target: float | None, paces: Sequence[float | None]
) -> Score:
    """Average over sets and backbones; of those without a score only the counts are kept."""
    covered = [s for s in scores.values() if s.mean is not None]
    weighed = covered or list(scores.values())  # what diverged everywhere was trained, too
    curve = _mean_curve([s.curve for s in covered])
    merging = {s.merges for s in covered}
    reached = {share: _reach(curve, share, target) for share in SHARES}
    return Score(
        mean=_mean([s.mean for s in covered if s.mean is not None]),
        fold_std=None,
        seed_std=None,
        before=_all_or_none([s.before for s in covered]),
        curve=curve,
        cells=sum(s.cells for s in scores.values()),
        refused=sum(s.refused for s in scores.values()),
        reasons=tuple(dict.fromkeys(reason for s in scores.values() for reason in s.reasons)),
        diverged=sum(s.diverged for s in scores.values()),
        trained_share=_mean([s.trained_share for s in weighed if s.trained_share is not None]),
        bytes=_mean([s.bytes for s in weighed if s.bytes is not None]),
        merges=merging.pop() if len(merging) == 1 else None,
        steps_to=reached,
        full_steps_to=_times(reached, _all_or_none(paces)),
    )


def _shared(
    records: Sequence[Record], setting: str, own: Sequence[Record], reference: Variant
) -> list[Record]:
    """Return the reference's cells under other headings, where this one is silent about it."""
    units = {(place_of(r), r["fold"], r["seed"], condition_of(r)) for r in own}
    have = {
        (place_of(r), r["fold"], r["seed"], condition_of(r))
        for r in own
        if variant_of(r) == reference
    }
    found = []
    for record in records:
        unit = (place_of(record), record["fold"], record["seed"], condition_of(record))
        wanted = record["setting"] != setting and variant_of(record) == reference
        if wanted and unit in units and unit not in have:
            have.add(unit)
            found.append(record)
    return found


def _target(cells: Sequence[Record], against: Sequence[Record]) -> float | None:
    """Return the reference's mean over the people and seeds for whom there is a score."""
    units = {(place_of(r), r["fold"], r["seed"]) for r in _usable(cells)}
    matched = [r for r in against if (place_of(r), r["fold"], r["seed"]) in units]
    return _mean([r["macro_f1"] for r in matched])


def _pace(costs: Sequence[Record], place: Place, variant: Variant) -> float | None:
    """Return a step's time over full's; frames of one form cost the same, whatever made them."""
    for frame in (variant.frame, "random"):
        for cost in costs:
            named = (cost["data"], cost["model"], cost["method"], cost["frame"], cost["rank"])
            if named == (*place, variant.method, frame, variant.rank) and (
                cost.get("optimiser", variant.optimiser) == variant.optimiser
            ):
                return cost.get("step_of_full")
    return None


def _reach(curve: Curve, share: float, target: float | None) -> float | None:
    return None if target is None else steps_to(curve, share * target)


def _times(reached: Mapping[float, float | None], pace: float | None) -> dict[float, float | None]:
    return {s: None if n is None or pace is None else n * pace for s, n in reached.items()}


def _mean_curve(curves: Sequence[Iterable[tuple[int, float | None]]]) -> Curve:
    """Average curves over the steps at which all of them have a value."""
    values: dict[int, list[float]] = {}
    for curve in curves:
        for step, f1 in curve:
            if f1 is not None:
                values.setdefault(int(step), []).append(f1)
    found = {step: v for step, v in values.items() if len(v) == len(curves)}
    return tuple((step, statistics.fmean(found[step])) for step in sorted(found))


def _usable(cells: Iterable[Record]) -> list[Record]:
    return [r for r in cells if not r["refused"] and r["macro_f1"] is not None]


def _grouped(records: Iterable[Record], key: Callable[[Record], Key]) -> dict[Key, list[Record]]:
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _f1(cells: Sequence[Record]) -> float:
    return statistics.fmean(r["macro_f1"] for r in cells)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _all_or_none(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None
