"""Run a sweep: shared bases first, then cells, in parallel; every result is kept as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fleet.errors import InputError
from simulations.progress import Progress
from simulations.sweep.cells import Cell, check_cell
from simulations.sweep.pool import Lost, Pool
from simulations.sweep.store import Failure, Kept, Store
from simulations.sweep.worker import BaseJob, CellJob, Outcome, base_path, do

__all__ = ["alone", "execute"]

PRELOAD = ("simulations.sweep.worker",)
LOCK = "sweep.lock"
NO_MEMORY = "Most often for want of memory: go on with --retry-failed and fewer --jobs."


def execute(
    store: Store, folder: Path, wanted: Sequence[Cell], jobs: int, progress: Progress
) -> list[Kept]:
    """Do what is not yet done of some cells, and return them as they then are.

    A cell that fails is kept with its error and stops no other.

    Args:
        store: Where they are queued; nobody else writes to it, see :func:`alone`.
        folder: The sweep's folder.
        wanted: The cells.
        jobs: Processes, of one torch thread each.
        progress: Told of every base and cell.

    Raises:
        InputError: See :func:`~simulations.sweep.cells.check_cell`; nothing has then run.
    """
    # Cells that were running when their parent was killed.
    store.requeue("running", wanted)
    ids = {cell.id for cell in wanted}
    left = [kept.cell for kept in store.kept() if kept.cell.id in ids and kept.state == "queued"]
    for cell in left:
        check_cell(cell.engine, cell.config)
    try:
        with Pool(max(1, min(jobs, len(left))), do, PRELOAD) as pool:
            ready = _bases(store, folder, left, pool, progress)
            _cells(store, folder, ready, len(ids), pool, progress)
    except BaseException:
        store.requeue("running", wanted)
        raise
    return [kept for kept in store.kept() if kept.cell.id in ids]


Jobs = Pool[BaseJob | CellJob, Outcome]


def _bases(
    store: Store, folder: Path, cells: Sequence[Cell], pool: Jobs, progress: Progress
) -> list[Cell]:
    """Train the bases that are missing; return the cells that have theirs."""
    sharing: dict[str, list[Cell]] = {}
    for cell in cells:
        sharing.setdefault(cell.base_key, []).append(cell)
    missing = [
        BaseJob(folder, members[0])
        for key, members in sharing.items()
        if key and not base_path(folder, members[0]).is_file()
    ]
    if missing:
        progress.stage("bases", len(missing), f"for {len(cells)} cells")
    without: set[str] = set()
    for job, found in pool.run(missing):
        outcome = _outcome(found)
        progress.advance(f"{job.cell.config.model}, seed {job.cell.config.seed}")
        if outcome.failure is not None:
            without.add(job.cell.base_key)
            for cell in sharing[job.cell.base_key]:
                store.failed(cell.id, outcome.failure)
            progress.say(f"a base failed: {outcome.failure.message}")
    return [cell for cell in cells if cell.base_key not in without]


def _cells(
    store: Store, folder: Path, cells: Sequence[Cell], total: int, pool: Jobs, progress: Progress
) -> None:
    progress.stage("cells", len(cells), f"{total - len(cells)} of {total} were done or failed")
    todo = [CellJob(folder, cell) for cell in cells]
    for job, found in pool.run(todo, on_start=lambda job: store.started(job.cell.id)):
        outcome = _outcome(found)
        if outcome.failure is None:
            store.done(job.cell.id, outcome.results, outcome.seconds)
            f1 = outcome.results[0].macro_f1
            progress.advance(f"last F1 {'n/a' if f1 is None else format(f1, '.3f')}")
        else:
            store.failed(job.cell.id, outcome.failure)
            progress.advance("last one failed")
            progress.say(f"cell {job.cell.id} failed: {outcome.failure.message}")


def _outcome(found: Outcome | Lost) -> Outcome:
    if isinstance(found, Lost):
        text = f"its process ended with code {found.code}"
        return Outcome(failure=Failure("worker-died", text, NO_MEMORY))
    return found


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a sweep's folder while the block runs; the system lets go of it if we are killed.

    Raises:
        InputError: ``sweep-busy`` when another process holds it.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "sweep-busy",
                f"another process runs the sweep in {folder}",
                f"Wait for it, or choose another --out. What it has so far: fleet report {folder}",
            ) from error
        yield
