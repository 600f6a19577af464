"""From the cells of a grid to its result: costs, report, and the record that scripts read."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

from fleet.files import write_json
from simulations.bench import header
from simulations.benchmarks.peft.costs import Variant, costs_of, variants_of
from simulations.benchmarks.peft.run import Work, read_rates, under_headings
from simulations.progress import Progress

__all__ = ["finish"]


def finish(
    work: Work, cells: list[dict[str, Any]], folder: Path, progress: Progress, *, costs: bool
) -> dict[str, Any]:
    """Measure what steps cost, write the report, and return the result.

    Args:
        work: The grid's work.
        cells: Records of its cells.
        folder: Where costs are kept and the report is written.
        progress: Told of every backbone whose steps are measured.
        costs: Whether to measure costs that are not known yet.
    """
    from simulations.benchmarks.peft.report import write_report

    known = _costs(work, folder, progress, measure=costs)
    rates = read_rates(work, folder)
    summary = write_report(under_headings(work, cells), known, rates, header(), folder)
    return header() | {"cells": cells, "costs": known, "rates": rates, "summary": summary}


def _costs(work: Work, folder: Path, progress: Progress, *, measure: bool) -> list[dict[str, Any]]:
    path = folder / "costs.json"
    known: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    if not measure:
        return known
    have = {tuple(row[name] for name in Variant.__dataclass_fields__) for row in known}
    wanted = sorted(variants_of(work.cells), key=_side_by_side)
    missing = [v for v in wanted if tuple(v.__dict__.values()) not in have]
    groups = [list(group) for _, group in groupby(missing, key=_side_by_side)]
    progress.stage("costs", len(groups))
    for group in groups:
        known += costs_of(group)
        write_json(path, known)
        progress.advance(f"{group[0].data} {group[0].model}")
    return known


def _side_by_side(variant: Variant) -> tuple[str, str, int]:
    """Return what variants share that are measured in one run."""
    return variant.data, variant.model, variant.batch
