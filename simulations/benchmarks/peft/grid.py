"""What is to be run: a grid of cells, each one adaptation of one base to one held-out person.

The protocol is LoRA-Edge's (arXiv 2511.03765, Sec. IV): pre-training on the source people, 80/20
split of the target's windows, 50 steps of Adam on batches of 64. Cells that differ only in the
method share base, split, batch order and shift.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleet.adapt.digest import canonical_json
from fleet.adapt.frames import FRAME_KINDS
from fleet.errors import InputError, ModelError
from fleet.har.shifts import parse
from fleet.models import registry
from fleet.peft.tuners import ALL, find

__all__ = [
    "Cell",
    "Grid",
    "Part",
    "cells_of",
    "check_names",
    "grid_of",
    "headings_of",
    "read_grid",
]

Split = Literal["chronological", "random"]
Statistics = Literal["frozen", "calibrated"]
Scale = Literal["response", "none"]
Positive = Annotated[int, Field(ge=1)]
Portion = Annotated[float, Field(gt=0, le=1)]
UNUSED = "-"
PLANNED = "-planned"


class Cell(BaseModel):
    """One adaptation.

    Args:
        data: Data set, by name or path.
        model: Backbone.
        method: Name of a tuner, ``+head`` and ``+bias`` appended where these are trained as well.
        frame: Kind of frame, with ``-planned`` where the planner spreads the bytes of a uniform
            rank over the layers; ``-`` for methods without.
        rank: Rank of every layer, capped by what a layer allows; 0 for methods without.
        split: How the person's windows are cut, 80 % of each class to train on.
        fold: The held-out person.
        seed: Of batch order, random split, few labels, shift and random initial values.
        shift: How the person's sensor differs from the source's.
        labels: Share of the training windows that are labelled, in (0, 1].
        statistics: Batch-norm statistics: the source's, or estimated on the target's windows.
        scale: Whether frames are scaled to unit response.
        unseen: Classes that the base never saw; the head grows by them.
        steps: Optimiser steps.
        batch: Windows per step.
        optimiser: ``adam``, as published, or ``sgd``.
        setting: Heading under which the report puts it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    model: str
    method: str
    frame: str = UNUSED
    rank: int = 0
    split: Split = "chronological"
    fold: int = 0
    seed: int = 0
    shift: str = "none"
    labels: float = 1.0
    statistics: Statistics = "frozen"
    scale: Scale = "response"
    unseen: int = 0
    steps: int = 50
    batch: int = 64
    optimiser: Literal["adam", "sgd"] = "adam"
    setting: str = "main"

    @property
    def key(self) -> str:
        """Names the cell's file: a digest of everything but the heading."""
        return digest_of(self.model_dump(exclude={"setting"}))


class Part(BaseModel):
    """One block of a grid: the product of its lists.

    Args:
        setting: Heading in the report.
        data: Data sets.
        models: Backbones.
        methods: Tuners; ``all`` for every one.
        frames: Frames of the methods that have them.
        ranks: Ranks of the methods that have one.
        splits: Ways to cut a person's windows.
        folds: Held-out people per set, drawn once by the data set's name; 0 for all.
        seeds: Adaptation seeds, counted from 0.
        others: As in :class:`Cell`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    setting: str = "main"
    data: tuple[str, ...] = Field(min_length=1)
    models: tuple[str, ...] = Field(default=("small-cnn",), min_length=1)
    methods: tuple[str, ...] = Field(default=("all",), min_length=1)
    frames: tuple[str, ...] = Field(default=("svd",), min_length=1)
    ranks: tuple[Positive, ...] = Field(default=(2,), min_length=1)
    splits: tuple[Split, ...] = Field(default=("chronological",), min_length=1)
    shifts: tuple[str, ...] = Field(default=("none",), min_length=1)
    labels: tuple[Portion, ...] = Field(default=(1.0,), min_length=1)
    statistics: tuple[Statistics, ...] = Field(default=("frozen",), min_length=1)
    scales: tuple[Scale, ...] = Field(default=("response",), min_length=1)
    unseen: int = Field(default=0, ge=0)
    folds: int = Field(default=2, ge=0)
    seeds: int = Field(default=3, ge=1)
    steps: tuple[Positive, ...] = Field(default=(50,), min_length=1)
    batch: int = Field(default=64, ge=1)
    optimisers: tuple[Literal["adam", "sgd"], ...] = Field(default=("adam",), min_length=1)


class Grid(BaseModel):
    """A grid and how its bases are made.

    Args:
        parts: Blocks; a cell that two blocks share is run once.
        source_windows: Most windows of the source people that a base is trained on.
        epochs: Passes over them.
        players: Source people per data set on whom a learning rate is chosen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parts: tuple[Part, ...] = Field(min_length=1)
    source_windows: int = Field(default=4096, ge=64)
    epochs: int = Field(default=6, ge=1)
    players: int = Field(default=2, ge=1)


def read_grid(path: Path) -> Grid:
    """Read a grid from a TOML file: ``[[parts]]`` tables, and the bases' settings at its top.

    Raises:
        InputError: ``grid-missing``, ``grid-syntax`` or ``grid-invalid``.
    """
    import tomllib  # Python 3.11; only the simulation host comes here

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("grid-missing", f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("grid-syntax", f"{path} is no TOML: {error}") from error
    return grid_of(content, str(path))


def grid_of(content: Mapping[str, Any], where: str) -> Grid:
    """Validate a grid; its names are checked by :func:`check_names`.

    Raises:
        InputError: ``grid-invalid`` with every problem.
    """
    try:
        return Grid.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()]
        raise InputError("grid-invalid", f"{where}: {'; '.join(problems)}") from error


def check_names(grid: Grid) -> None:
    """Look up every method, backbone, frame and shift, before hours are spent on the others.

    Raises:
        InputError: ``unknown-method``, ``unknown-frame`` or ``bad-shift``.
        ModelError: ``unknown-model``.
    """
    for part in grid.parts:
        _variants(part)
        for model in part.models:
            if model not in registry.names():
                known = ", ".join(registry.names())
                raise ModelError("unknown-model", f"there is no model {model!r}; known: {known}")
        for frame in part.frames:
            if frame.removesuffix(PLANNED) not in FRAME_KINDS:
                known = f"Known: {', '.join(FRAME_KINDS)}; any of them with {PLANNED}."
                raise InputError("unknown-frame", f"there is no frame {frame!r}", known)
        for shift in part.shifts:
            parse(shift)


def cells_of(grid: Grid, people: Mapping[str, tuple[int, ...]]) -> list[Cell]:
    """Return the cells of a grid, each once, in the order in which they share most.

    Args:
        grid: The grid.
        people: Held-out people of each data set, in the order in which folds are counted.
    """
    found: dict[str, Cell] = {}
    for part in grid.parts:
        for cell in _cells(part, people):
            found.setdefault(cell.key, cell)
    place = {s: i for i, s in enumerate(dict.fromkeys(p.setting for p in grid.parts))}
    return sorted(
        found.values(),
        key=lambda c: (place[c.setting], c.model, c.data, c.seed, c.fold, c.split, c.shift),
    )


def headings_of(grid: Grid, people: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[str, ...]]:
    """Return every heading that asks for a cell, by the cell's key."""
    found: dict[str, dict[str, None]] = {}
    for part in grid.parts:
        for cell in _cells(part, people):
            found.setdefault(cell.key, {})[part.setting] = None
    return {key: tuple(headings) for key, headings in found.items()}


def _cells(part: Part, people: Mapping[str, tuple[int, ...]]) -> Iterable[Cell]:
    for data, model in product(part.data, part.models):
        folds = people[data] if part.folds == 0 else people[data][: part.folds]
        for method, frame, rank, scale in _variants(part):
            for split, shift, labels, statistics, fold, seed, steps, optimiser in product(
                part.splits,
                part.shifts,
                part.labels,
                part.statistics,
                folds,
                range(part.seeds),
                part.steps,
                part.optimisers,
            ):
                yield Cell(
                    data=data,
                    model=model,
                    method=method,
                    frame=frame,
                    rank=rank,
                    split=split,
                    fold=fold,
                    seed=seed,
                    shift=shift,
                    labels=labels,
                    statistics=statistics,
                    scale=scale,
                    unseen=part.unseen,
                    steps=steps,
                    batch=part.batch,
                    optimiser=optimiser,
                    setting=part.setting,
                )


def _variants(part: Part) -> list[tuple[str, str, int, Scale]]:
    """Return (method, frame, rank, scale); methods without a frame or rank come once."""
    names = list(ALL) if "all" in part.methods else []
    names += [name for name in part.methods if name != "all" and name not in names]
    found: list[tuple[str, str, int, Scale]] = []
    for name in names:
        tuner = find(name)
        frames = part.frames if tuner.framed else (UNUSED,)
        ranks = part.ranks if tuner.ranked else (0,)
        scales: tuple[Scale, ...] = part.scales if tuner.framed else ("response",)
        found += list(product((name,), frames, ranks, scales))
    return found


def digest_of(content: Any) -> str:
    """Return 20 hex digits that name a piece of work."""
    return hashlib.sha256(canonical_json(content)).hexdigest()[:20]
