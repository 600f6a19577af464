"""One picture per scenario: F1 over time, strategies as lines, means over data sets and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from simulations.benchmarks.continual.summary import Record
from simulations.continual.plots import plot_f1

__all__ = ["curves_of", "draw"]


def draw(records: Sequence[Record], folder: Path) -> dict[str, str]:
    """Draw the scenarios and return the pictures' paths, relative to the folder above, by scenario.

    Args:
        records: Of cells.
        folder: Where to.

    Raises:
        StorageError: When a picture cannot be written.
    """
    usable = [record for record in records if record["row"] is not None]
    found = {}
    for scenario in dict.fromkeys(record["scenario"] for record in usable):
        own = [record for record in usable if record["scenario"] == scenario]
        name = f"{Path(scenario).stem}.png"
        blocks = len({(record["data"], record["seed"]) for record in own})
        sets = len({record["data"] for record in own})
        title = f"{Path(scenario).stem} · mean of {blocks} runs on {sets} data sets"
        plot_f1(curves_of(own), _changes(own), title, folder / name)
        found[scenario] = f"{folder.name}/{name}"
    return found


def curves_of(records: Iterable[Record]) -> dict[str, list[float | None]]:
    """Return each strategy's mean F1 by period; None where no cell has a score.

    Strategies that lack blocks which others have are left out, if any has all.
    """
    cells: dict[str, list[Record]] = {}
    for record in records:
        cells.setdefault(record["strategy"], []).append(record)
    most = max(map(len, cells.values()))
    return {
        name: [_mean(values) for values in zip(*(r["row"]["f1"] for r in own), strict=True)]
        for name, own in cells.items()
        if len(own) == most
    }


def _changes(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return what changes; which classes are new depends on the data set."""
    texts: dict[tuple[int, int], set[str]] = {}
    for record in records:
        for number, change in enumerate(record["changes"]):
            texts.setdefault((change["period"], number), set()).add(change["text"])
    return [
        {"period": period, "text": _common(found)} for (period, _), found in sorted(texts.items())
    ]


def _common(texts: set[str]) -> str:
    if len(texts) == 1:
        return next(iter(texts))
    return "new classes" if all(text.startswith("new:") for text in texts) else min(texts)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
