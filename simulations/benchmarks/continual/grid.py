"""What is to be run: a grid of cells, each one strategy over one scenario on one data set.

Cells that differ in the strategy alone share people, windows, labels, changes and base.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fleet.adapt.frames import FrameKind
from fleet.config import RunConfig
from fleet.continual.scenario import Scenario, load_scenario
from fleet.errors import InputError
from fleet.federate.records import problems_of
from simulations.benchmarks.peft.grid import digest_of
from simulations.continual.strategies import STRATEGIES, strategy

__all__ = ["Cell", "Grid", "Rates", "Training", "cells_of", "grid_of", "only_of", "read_grid"]

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=100)]
Ladder = Annotated[tuple[Rate, ...], Field(min_length=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Seed = Annotated[int, Field(ge=0)]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]

FIVE = ("sensor-moves", "slow-drift", "new-classes", "changing-habits", "few-labels")
# What a strategy is called changes no result.
WORDS = ("name", "summary")
AXES = ("scenario", "data", "strategy", "seed")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Cell(_Record):
    """One strategy over one scenario.

    Args:
        scenario: A shipped one, or a file.
        data: Data set, by name or path.
        strategy: See ``simulations.continual.strategies``.
        seed: Of people, timelines, base and training.
        epochs: Passes over a period's windows.
        batch: Windows per step.
        model: Backbone.
        classes: ``basic`` or ``all``.
        frame: Of the base, where the strategy does not say another.
        rank: Columns of each core.
        base_epochs: Passes in which the base is trained.
    """

    scenario: str
    data: str
    strategy: str
    seed: int
    epochs: Positive = 1
    batch: Positive = 32
    model: str = "small-cnn"
    classes: Literal["basic", "all"] = "basic"
    frame: FrameKind = "svd"
    rank: Positive = 2
    base_epochs: Positive = 12

    @property
    def key(self) -> str:
        """Names the cell's file: a digest of all that it is, definitions included."""
        one = strategy(self.strategy)
        means = {f.name: getattr(one, f.name) for f in fields(one) if f.name not in WORDS}
        means["options"] = one.options.model_dump(mode="json")
        happens = scenario_of(self.scenario).model_dump(mode="json")
        return digest_of([self.model_dump(), means, happens])

    @property
    def block(self) -> tuple[str, int]:
        """Data set and seed: what strategies are compared on."""
        return self.data, self.seed

    def config(self, out: Path | str = "") -> RunConfig:
        """Return the configuration of the cell's run."""
        left_out = {"scenario", "strategy"}
        return RunConfig.parse(
            self.model_dump(exclude=left_out) | {"shift": "none", "out": str(out)}
        )


class Rates(_Record):
    """How learning rates are chosen: on a seed that no cell has.

    Args:
        scenario: Of the rehearsal.
        seed: Of the rehearsal; none of the grid's.
        ladder: Rates that may be tried, ascending.
        ladders: The same of single methods, see ``fleet.peft``.
    """

    scenario: str = "sensor-moves"
    seed: Seed = 1000
    ladder: Ladder = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    ladders: dict[str, Ladder] = Field(default_factory=dict)


class Training(_Record):
    """What one strategy does unlike the others.

    Args:
        epochs: Passes over a period's windows; 0 for the grid's.
        batch: Windows per step; 0 for the grid's.
        rates: Rates that may be tried; one alone is taken as it is.
    """

    epochs: Annotated[int, Field(ge=0)] = 0
    batch: Annotated[int, Field(ge=0)] = 0
    rates: tuple[Rate, ...] = ()


class Grid(_Record):
    """A grid: the product of its four lists.

    Args:
        scenarios: Shipped ones, or files.
        data: Data sets.
        strategies: Strategies.
        seeds: Seeds.
        rates: How learning rates are chosen.
        training: Exceptions by strategy.
        others: As in :class:`Cell`.
    """

    scenarios: Names = FIVE
    data: Names
    strategies: Names = tuple(STRATEGIES)
    seeds: Seeds = (0, 1, 2)
    epochs: Positive = 1
    batch: Positive = 32
    model: str = "small-cnn"
    classes: Literal["basic", "all"] = "basic"
    frame: FrameKind = "svd"
    rank: Positive = 2
    base_epochs: Positive = 12
    rates: Rates = Rates()
    training: dict[str, Training] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _makes_sense(self) -> Grid:
        problems = []
        if self.rates.seed in self.seeds:
            problems.append(f"rates.seed must be none of seeds, and {self.rates.seed} is one")
        for name in ("scenarios", "data", "strategies", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                problems.append(f"{name} names something twice")
        unknown = sorted({*self.strategies, *self.training} - set(STRATEGIES))
        if unknown:
            known = ", ".join(STRATEGIES)
            problems.append(f"there is no strategy {', '.join(unknown)}; known: {known}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def cell(self, scenario: str, data: str, name: str, seed: int) -> Cell:
        """Return a cell."""
        own = self.training.get(name, Training())
        alike = ("model", "classes", "frame", "rank", "base_epochs")
        return Cell(
            scenario=scenario,
            data=data,
            strategy=name,
            seed=seed,
            epochs=own.epochs or self.epochs,
            batch=own.batch or self.batch,
            **{name: getattr(self, name) for name in alike},
        )

    def ladder(self, name: str) -> tuple[float, ...]:
        """Return the rates that may be tried for a strategy, ascending."""
        own = self.training.get(name, Training()).rates
        ladder = own or self.rates.ladders.get(strategy(name).method, self.rates.ladder)
        return tuple(sorted(set(ladder)))


def read_grid(path: Path) -> dict[str, Any]:
    """Read a grid's content from a TOML file.

    Raises:
        InputError: ``grid-missing`` or ``grid-syntax``.
    """
    import tomllib  # Python 3.11; only the simulation host comes here

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("grid-missing", f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError("grid-syntax", f"{path} is no TOML: {error}") from error


def grid_of(content: Mapping[str, Any], where: str) -> Grid:
    """Validate a grid and look up its scenarios.

    Raises:
        InputError: ``grid-invalid`` with every problem; ``no-such-scenario``, ``bad-scenario``.
    """
    try:
        grid = Grid.model_validate(dict(content))
    except ValidationError as error:
        raise InputError(
            "grid-invalid",
            f"{where}: {problems_of(error)}",
            "simulations/experiments/continual.toml shows every key.",
        ) from error
    for name in (*grid.scenarios, grid.rates.scenario):
        scenario_of(name)
    return grid


@lru_cache(maxsize=64)
def scenario_of(name: str) -> Scenario:
    """Return a scenario, read once a process."""
    return load_scenario(name)


def cells_of(grid: Grid, only: Mapping[str, frozenset[str]] | None = None) -> list[Cell]:
    """Return the cells of a grid, those together that share most.

    Args:
        grid: The grid.
        only: From :func:`only_of`.
    """
    wanted = only or {}
    return [
        cell
        for cell in _cells(grid)
        if all(str(getattr(cell, axis)) in values for axis, values in wanted.items())
    ]


def only_of(texts: Iterable[str], grid: Grid) -> dict[str, frozenset[str]]:
    """Read ``scenario=new-classes,data=hapt``; a key that comes twice means either.

    Raises:
        InputError: ``bad-only``.
    """
    found: dict[str, set[str]] = {}
    lists = (grid.scenarios, grid.data, grid.strategies, grid.seeds)
    known = {axis: {str(v) for v in values} for axis, values in zip(AXES, lists, strict=True)}
    for part in (part.strip() for text in texts for part in text.split(",") if part.strip()):
        axis, _, value = part.partition("=")
        if axis not in known or value not in known[axis]:
            names = ", ".join(sorted(known.get(axis, AXES)))
            raise InputError(
                "bad-only",
                f"--only takes KEY=VALUE of the grid, not {part!r}",
                f"Known here: {names}.",
            )
        found.setdefault(axis, set()).add(value)
    return {axis: frozenset(values) for axis, values in found.items()}


def _cells(grid: Grid) -> Iterator[Cell]:
    for data, seed, scenario, name in product(
        grid.data, grid.seeds, grid.scenarios, grid.strategies
    ):
        yield grid.cell(scenario, data, name, seed)
