"""The record of a bench and its table: medians, spread, memory, and ratios to our engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from simulations.bench import Measurement, header
from simulations.benchmarks.simulate.measure import Measured, OneRun
from simulations.benchmarks.simulate.sides import SIDES
from simulations.benchmarks.simulate.work import Work
from simulations.processes import MEMORY

__all__ = ["AGAINST", "draw_table", "record_of"]

AGAINST = "cohort"


def record_of(work: Work, measured: Measured, runs: int) -> dict[str, Any]:
    """Return what a bench came to.

    Args:
        work: The workload.
        measured: The sides' runs.
        runs: How many each should have.

    Returns:
        The header of every bench; ``work``; ``sides`` by name, each null where it is absent, and
        otherwise with medians and the lowest and highest of ``seconds`` (the whole command),
        ``seconds_per_round`` (the steady state) and ``peak_bytes``, the first and last
        ``macro_f1``, and ``ratio`` to our engine; ``absent``: why a side is null.
    """
    sides: dict[str, Any] = dict.fromkeys((*measured.runs, *measured.absent))
    for name, found in measured.runs.items():
        sides[name] = _side(found)
    reference = sides.get(AGAINST)
    for side in sides.values():
        if side is not None:
            side["ratio"] = _ratios(side, reference)
    config = work.config
    size = {
        "rounds": config.rounds,
        "cohort": config.cohort,
        "batch": config.batch,
        "epochs": config.epochs,
        "evaluate_every": config.evaluate_every,
        "data": config.data,
        "model": config.model,
        "rank": config.rank,
    }
    return header() | {
        "work": {**work.sizes, **size},
        "runs": runs,
        "memory": MEMORY,
        "against": AGAINST,
        "sides": {name: sides[name] for name in SIDES if name in sides},
        "absent": dict(measured.absent),
    }


def _side(found: Sequence[OneRun]) -> dict[str, Any]:
    figures: dict[str, Callable[[OneRun], float]] = {
        "seconds": lambda one: one.seen.seconds,
        "seconds_per_round": lambda one: one.said.seconds_per_round,
        "first_round_seconds": lambda one: one.said.rounds[0],
        "peak_bytes": lambda one: one.seen.peak_bytes,
    }
    side: dict[str, Any] = {"runs": len(found)}
    for name, figure in figures.items():
        spread = Measurement.of([figure(one) for one in found])
        exact = int if name.endswith("bytes") else float
        side[name] = exact(spread.median)
        side[f"{name}_lowest"], side[f"{name}_highest"] = (
            exact(spread.lowest),
            exact(spread.highest),
        )
    scores = [one.said.scores for one in found]
    side["macro_f1_before"] = round(Measurement.of([each[0] for each in scores]).median, 4)
    side["macro_f1"] = round(Measurement.of([one.said.macro_f1 for one in found]).median, 4)
    return side


def _ratios(side: Mapping[str, Any], reference: Mapping[str, Any] | None) -> dict[str, Any]:
    names = ("seconds", "seconds_per_round", "peak_bytes")
    if reference is None:
        return dict.fromkeys(names)
    return {
        name: round(side[name] / reference[name], 3) if reference[name] else None for name in names
    }


def draw_table(console: Console, record: Mapping[str, Any]) -> None:
    """Draw a bench's record."""
    console.print(f"$ {record['command']}", highlight=False, soft_wrap=True)
    made = ", ".join(f"{name} {v}" for name, v in record["versions"].items())
    console.print(f"{record['machine']}; {made}", highlight=False, soft_wrap=True)
    work = record["work"]
    size = f"{work['devices']:,} devices, {work['cohort']} a round, {work['rounds']} rounds"
    times = f"{record['runs']} run(s) of each side, in turn"
    console.print(f"{size}; {times}; data {work['data']}", highlight=False, soft_wrap=True)
    _draw_times(console, record, "seconds", "whole command")
    _draw_times(console, record, "seconds_per_round", "a round, median of all but the first")
    _draw_memory_and_scores(console, record)
    for name in record["sides"]:
        console.print(f"{name}: {SIDES[name].summary}", highlight=False)
    for name, why in record["absent"].items():
        console.print(f"{name} is absent: {why}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"memory: {record['memory']}", highlight=False, soft_wrap=True)


def _draw_times(console: Console, record: Mapping[str, Any], key: str, title: str) -> None:
    table = Table("side", title=title)
    for name in ("median", "lowest", "highest", f"× {record['against']}"):
        table.add_column(name, justify="right")
    for name, side in record["sides"].items():
        cells = ["absent"]
        if side is not None:
            ratio = side["ratio"][key]
            cells = [f"{side[key + end]:.2f} s" for end in ("", "_lowest", "_highest")]
            cells.append("–" if ratio is None else f"{ratio:.2f}")
        table.add_row(name, *cells)
    console.print(table)


def _draw_memory_and_scores(console: Console, record: Mapping[str, Any]) -> None:
    table = Table("side", title="peak memory, and macro-F1 before and after")
    for name in ("median", f"× {record['against']}", "before", "after"):
        table.add_column(name, justify="right")
    for name, side in record["sides"].items():
        cells = ["absent"]
        if side is not None:
            ratio = side["ratio"]["peak_bytes"]
            cells = [f"{side['peak_bytes'] / 1e6:,.0f} MB"]
            cells.append("–" if ratio is None else f"{ratio:.2f}")
            cells += [f"{side[score]:.3f}" for score in ("macro_f1_before", "macro_f1")]
        table.add_row(name, *cells)
    console.print(table)
