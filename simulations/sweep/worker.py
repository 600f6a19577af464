"""What a worker process of a sweep does: train a base that cells share, or run a cell."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from fleet.adapt.base import save_base
from fleet.config import RunConfig
from fleet.errors import FleetError
from fleet.files import write_text
from fleet.har.population import population_of
from server.prepare import check_feasible, obtain_base
from simulations.progress import Silent
from simulations.simulate import Run, simulate
from simulations.sweep.cells import Cell
from simulations.sweep.outcome import Result, read_result
from simulations.sweep.store import Failure

__all__ = ["BaseJob", "CellJob", "Outcome", "base_path", "cell_folder", "do"]


@dataclass(frozen=True)
class BaseJob:
    """Train the base that some cells share.

    Args:
        folder: The sweep's folder.
        cell: One of those cells.
    """

    folder: Path
    cell: Cell


@dataclass(frozen=True)
class CellJob:
    """Run a cell, or go on with it.

    Args:
        folder: The sweep's folder.
        cell: The cell.
    """

    folder: Path
    cell: Cell


@dataclass(frozen=True)
class Outcome:
    """What came of a job.

    Args:
        results: Of a cell's methods, in order; none for a base.
        seconds: Wall time of the job.
        failure: Why it failed, if it did.
    """

    results: tuple[Result, ...] = ()
    seconds: float = 0.0
    failure: Failure | None = None


def base_path(folder: Path, cell: Cell) -> Path:
    """Return where the base that a cell shares is kept."""
    return folder / "bases" / f"{cell.base_key}.safetensors"


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Return the folder of a cell's run."""
    return folder / "cells" / cell.id


def do(job: BaseJob | CellJob) -> Outcome:
    """Do a job on one thread; what goes wrong is its outcome."""
    torch.set_num_threads(1)
    started = time.monotonic()
    try:
        with threadpool_limits(1):
            results = _base(job) if isinstance(job, BaseJob) else _cell(job)
        return Outcome(results, round(time.monotonic() - started, 2))
    except FleetError as error:
        return Outcome(failure=Failure(error.code, error.message, error.hint))
    except Exception as error:
        # A bug in one cell must not cost the others; the trace is kept beside what it made.
        path = cell_folder(job.folder, job.cell) / "traceback.txt"
        write_text(path, traceback.format_exc())
        text = f"unexpected failure: {type(error).__name__}: {error}"
        return Outcome(failure=Failure("bug", text, f"The traceback is in {path}."))


def _base(job: BaseJob) -> tuple[Result, ...]:
    config = job.cell.base_config()
    population = population_of(config)
    check_feasible(config, population)
    save_base(obtain_base(config, population), base_path(job.folder, job.cell))
    return ()


def _cell(job: CellJob) -> tuple[Result, ...]:
    cell, folder = job.cell, cell_folder(job.folder, job.cell)
    changes: dict[str, str] = {"out": str(folder)}
    if cell.base_key:
        changes["base"] = str(base_path(job.folder, cell))
    config: RunConfig = cell.config.model_copy(update=changes)
    # The folder is named by the cell, so whatever it holds is this run, and simulate goes on.
    # The cores are shared among cells already.
    report = simulate(Run(config, cell.methods, {}, cell.engine, workers=1), Silent())
    digest = report["base"]["digest"]
    return tuple(read_result(folder, method, digest) for method in cell.methods)
