"""Rows and tables of the report: who was compared with whom, where, and what came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = [
    "FULL",
    "Condition",
    "Curve",
    "Paired",
    "Place",
    "Record",
    "Row",
    "Score",
    "Table",
    "Variant",
    "condition_of",
    "place_of",
    "variant_of",
]

Record = Mapping[str, Any]
Curve = tuple[tuple[int, float], ...]


class Place(NamedTuple):
    """A data set and a backbone."""

    data: str
    model: str


class Variant(NamedTuple):
    """A method with all that it can be varied in."""

    method: str
    frame: str = "-"
    rank: int = 0
    scale: str = "response"
    optimiser: str = "adam"
    statistics: str = "frozen"

    @property
    def label(self) -> str:
        """Name it in few words; what is usual is not said."""
        words = [self.method, *([] if self.frame == "-" else [self.frame])]
        words += [f"r{self.rank}"] if self.rank else []
        words += ["unscaled"] if self.scale == "none" else []
        words += [self.optimiser.upper()] if self.optimiser != "adam" else []
        words += [self.statistics] if self.statistics != "frozen" else []
        return " ".join(words)


class Condition(NamedTuple):
    """What a variant is put to."""

    split: str = "chronological"
    shift: str = "none"
    labels: float = 1.0
    unseen: int = 0
    steps: int = 50
    batch: int = 64

    @property
    def label(self) -> str:
        """Name it in few words; what is usual is not said."""
        words = [f"{self.split} split"]
        words += [f"shift {self.shift}"] if self.shift != "none" else []
        words += [f"{self.labels:.0%} of the labels"] if self.labels < 1 else []
        words += [f"{self.unseen} unseen classes"] if self.unseen else []
        words += [f"{self.steps} steps"] if self.steps != 50 else []
        words += [f"batches of {self.batch}"] if self.batch != 64 else []
        return ", ".join(words)


FULL = Variant("full")


@dataclass(frozen=True)
class Paired:
    """A difference of macro-F1 over cells that both sides have.

    Args:
        mean: Of the clusters; a cluster is one person under one backbone, averaged over seeds.
        error: Standard error over clusters; None with fewer than two.
        clusters: How many.
        cells: Pairs of cells in them.
    """

    mean: float | None
    error: float | None
    clusters: int
    cells: int


@dataclass(frozen=True)
class Score:
    """One variant on one data set and backbone, or the mean of several.

    Args:
        mean: Macro-F1 after the last step; None without a cell that has one.
        fold_std: Standard deviation over people of the means over seeds.
        seed_std: Standard deviation over seeds of the means over people.
        before: Macro-F1 at step 0.
        curve: (step, mean macro-F1).
        cells: All, also those without a score.
        refused: Cells that the method cannot do.
        reasons: Why, each once.
        diverged: Cells whose training diverged.
        trained_share: Trained parameters over all of the network's.
        bytes: Of an update.
        merges: Whether a network of the base's graph serves it; None: in some cells.
        steps_to: First step at which the mean curve reaches a share of full's score.
        full_steps_to: The same as time, in steps of full fine-tuning.
    """

    mean: float | None
    fold_std: float | None
    seed_std: float | None
    before: float | None
    curve: Curve
    cells: int
    refused: int
    reasons: tuple[str, ...]
    diverged: int
    trained_share: float | None
    bytes: float | None
    merges: bool | None
    steps_to: Mapping[float, float | None]
    full_steps_to: Mapping[float, float | None]


@dataclass(frozen=True)
class Row:
    """One variant in a table.

    Args:
        variant: The variant.
        scores: By data set and backbone.
        overall: Their mean, in which each weighs the same.
        covered: Of how many of them.
        difference: To the reference.
    """

    variant: Variant
    scores: Mapping[Place, Score]
    overall: Score
    covered: int
    difference: Paired


@dataclass(frozen=True)
class Table:
    """All variants under one heading and condition.

    Args:
        setting: Heading.
        condition: What they are put to.
        places: Columns.
        rows: The variant that trains least first.
        leading: The first variant of method ``core``, in the grid's order.
    """

    setting: str
    condition: Condition
    places: tuple[Place, ...]
    rows: tuple[Row, ...]
    leading: Variant | None

    def row(self, variant: Variant | None) -> Row | None:
        """Return a variant's row."""
        return next((row for row in self.rows if row.variant == variant), None)

    def as_records(self) -> list[dict[str, Any]]:
        """Return JSON values, one flat record per row; refused everywhere: nothing is trained."""
        return [
            {
                "setting": self.setting,
                **self.condition._asdict(),
                **row.variant._asdict(),
                "places": len(self.places),
                "covered": row.covered,
                "cells": row.overall.cells,
                "refused": row.overall.refused,
                "diverged": row.overall.diverged,
                "before": row.overall.before,
                "macro_f1": row.overall.mean,
                "delta_to_full": row.difference.mean,
                "delta_error": row.difference.error,
                "delta_clusters": row.difference.clusters,
                "trained_share": row.overall.trained_share or 0.0,
                "bytes": row.overall.bytes or 0.0,
                "merges": row.overall.merges,
                "steps_to": {f"{s:g}": n for s, n in row.overall.steps_to.items()},
                "full_steps_to": {f"{s:g}": n for s, n in row.overall.full_steps_to.items()},
            }
            for row in self.rows
        ]


def place_of(record: Record) -> Place:
    """Return where a cell was run."""
    return Place(record["data"], record["model"])


def variant_of(record: Record) -> Variant:
    """Return what was run in a cell."""
    return Variant(*(record[name] for name in Variant._fields))


def condition_of(record: Record) -> Condition:
    """Return what a cell's variant was put to."""
    return Condition(*(record[name] for name in Condition._fields))
