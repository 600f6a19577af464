"""One cell: a strategy over a scenario, in a folder that is gone once its row is kept."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from fleet.adapt.base import save_base
from fleet.config import RunConfig
from fleet.errors import FleetError, StorageError
from fleet.files import write_json
from server.prepare import train_base
from simulations.benchmarks.continual.grid import Cell, scenario_of
from simulations.benchmarks.continual.store import Store
from simulations.benchmarks.peft.grid import digest_of
from simulations.continual.driver import run_periods
from simulations.continual.report import report_of
from simulations.continual.setting import Setting, setting_of
from simulations.continual.strategies import strategy
from simulations.progress import Silent

__all__ = ["BaseRecipe", "record_of", "refused_record", "run_cell", "train"]


@dataclass(frozen=True)
class BaseRecipe:
    """A network that strategies start from.

    Args:
        cell: One of the cells that do.
        labels: Classes that it knows.
    """

    cell: Cell
    labels: tuple[str, ...]

    @property
    def key(self) -> str:
        """Names the network's file."""
        return digest_of([_plain(self.cell).model_dump(mode="json"), list(self.labels)])


def train(recipe: BaseRecipe, store: Store) -> None:
    """Train a network and keep it.

    Raises:
        StorageError: When it cannot be written.
    """
    begun = time.process_time()
    setting = _setting(recipe.cell.scenario, _plain(recipe.cell))
    people = setting.population
    base = train_base(setting.config, people, people.source)
    write_json(store.base_time(recipe.key), {"seconds": round(time.process_time() - begun, 3)})
    save_base(base, store.base(recipe.key))


def run_cell(
    cell: Cell, recipe: BaseRecipe, rate: float, store: Store, *, keep: bool = False
) -> dict[str, Any]:
    """Run a cell from its first period and return its record.

    A cell whose numbers break, e.g. at a rate that makes them infinite, is refused like one that
    cannot be: a grid does not end with it.

    Args:
        cell: The cell.
        recipe: Of its base, which is there.
        rate: Learning rate.
        store: Where the base is, and where the run's folder is made.
        keep: Leave that folder in place.

    Raises:
        StorageError: When something cannot be read or written.
    """
    begun, folder = time.process_time(), store.run(cell, rate)
    # A cell is whole or not at all: what a killed one left may be of older code.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(store.base(recipe.key), folder / "base.safetensors")
    shared = _setting(cell.scenario, _plain(cell))
    setting = replace(shared, config=cell.config(folder))
    try:
        with _no_denormals():
            outcome = _outcome(cell, setting, rate)
    except StorageError:
        raise
    except FleetError as error:
        outcome = refused_record(cell, f"{error.code}: {error.message}")
    except (ArithmeticError, ValueError) as error:  # LinAlgError is of the latter
        outcome = refused_record(cell, f"{type(error).__name__}: {error}")
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return outcome | {"rate": rate, "seconds": round(time.process_time() - begun, 3)}


def refused_record(cell: Cell, reason: str) -> dict[str, Any]:
    """Return the record of a cell that cannot be."""
    return cell.model_dump() | {"rate": 0.0, "refused": reason, "row": None, "seconds": 0.0}


def record_of(cell: Cell, report: dict[str, Any], start_classes: int) -> dict[str, Any]:
    """Return the record of a cell.

    Args:
        cell: The cell.
        report: Of its run, see ``simulations.continual.report``.
        start_classes: Classes that were there at the start.
    """
    return cell.model_dump() | {
        "refused": "",
        "row": report["strategies"][cell.strategy],
        "labels": report["labels"],
        "start_classes": start_classes,
        "changes": report["changes"],
    }


@contextmanager
def _no_denormals() -> Iterator[None]:
    """Take what is next to nothing for nothing, in this thread and those that it starts.

    A rate that kills a network leaves numbers so small that a CPU takes four times as long.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _outcome(cell: Cell, setting: Setting, rate: float) -> dict[str, Any]:
    one, timeline = strategy(cell.strategy), setting.timeline
    base = setting.base(one, None)
    continual = setting.continual(one, base, rate=rate, workers=1)
    records = run_periods(continual, Silent())
    run = {
        "scenario": setting.scenario.model_dump(mode="json"),
        "config": setting.config.model_dump(mode="json"),
    }
    trained = {one.name: continual.devices.trained_size(base, one.method)}
    report = report_of(run, timeline, {one.name: records}, trained)
    return record_of(cell, report, timeline.classes_at(0))


def _plain(cell: Cell) -> RunConfig:
    """Return what people, timeline and base depend on, alike for all strategies."""
    return cell.model_copy(update={"epochs": 1, "batch": 32}).config()


@lru_cache(maxsize=1)
def _setting(scenario: str, config: RunConfig) -> Setting:
    return setting_of(config, scenario_of(scenario))
