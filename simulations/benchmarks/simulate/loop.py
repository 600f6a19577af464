"""The sides ``loop-full`` and ``loop-core``: federated averaging as one writes it by hand.

    python -m simulations.benchmarks.simulate.loop core|full WORK.json OUT [PROCESSES [THREADS]]

A pool of forked processes, one thread each: a fork shares the imports and the windows, and networks
this small lose on more threads. Each process keeps one network for the whole run, is sent the
model once a round, trains its share of the cohort and sends back one weighted sum.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fleet.adapt.base import load_base
from fleet.adapt.train import batches
from fleet.seeds import generator
from simulations.benchmarks.simulate.outcome import Watch
from simulations.benchmarks.simulate.trainee import counts_of, trainee_of
from simulations.benchmarks.simulate.windows import read_windows
from simulations.benchmarks.simulate.work import Work, is_evaluated, read_work
from simulations.machine import cores

__all__ = ["Worker", "main", "run"]

Vector = NDArray[np.float32]


class Worker:
    """What one process keeps: the network and the windows.

    Args:
        work: The workload.
        method: ``core`` or ``full``.
    """

    def __init__(self, work: Work, method: str) -> None:
        self.work = work
        self.rate = work.rate(method)
        self.trainee = trainee_of(load_base(Path(work.config.base)), method)
        self.windows = read_windows(work.windows)

    def train(self, number: int, devices: Sequence[int], model: Vector) -> tuple[Vector, int]:
        """Train devices from one model; return the sum of their models, and their windows.

        Args:
            number: The round.
            devices: Partition ids.
            model: Flat trained parameters.

        Returns:
            The sum weighted by windows, and the sum of the weights.
        """
        start, total, weight = torch.from_numpy(model), torch.zeros(len(model)), 0
        for device in devices:
            x, y = map(torch.from_numpy, self.windows.train(device))
            self.trainee.load(start)
            self.trainee.train(x, y, self._order(number, device, len(y)), self.rate)
            total.add_(self.trainee.vector(), alpha=len(y))
            weight += len(y)
        return total.numpy(), weight

    def judge(self, part: int, parts: int, model: Vector) -> NDArray[np.int64]:
        """Return confusion counts ``(classes, classes)`` on one of ``parts`` of all tests."""
        self.trainee.load(torch.from_numpy(model))
        ends = np.linspace(0, len(self.windows.test_y), parts + 1).astype(int)
        rows = slice(int(ends[part]), int(ends[part + 1]))
        x, y = self.windows.test_x[rows], self.windows.test_y[rows]
        return counts_of(self.trainee.module, x, y, self.work.sizes["classes"])

    def _order(self, number: int, device: int, windows: int) -> Iterator[NDArray[np.int64]]:
        config = self.work.config
        name = self.windows.names[device]
        rng = generator(config.seed, number, name, "batches")
        return batches(windows, batch=config.batch, epochs=config.epochs, generator=rng)


def run(work: Work, method: str, processes: int, watch: Watch) -> Vector:
    """Run the workload; return the last model as a flat vector.

    Args:
        work: The workload.
        method: ``core`` or ``full``.
        processes: Worker processes; 1 for none beside this one.
        watch: Notes rounds and evaluations.
    """
    model: Vector = trainee_of(load_base(Path(work.config.base)), method).vector().numpy()
    with _spread(work, method, processes) as spread:

        def judge(number: int) -> None:
            parts = ((part, processes, model) for part in range(processes))
            watch.judged(number, np.sum(spread(Worker.judge, parts), axis=0))

        judge(0)
        for number, cohort in enumerate(work.cohorts, start=1):
            shares = ((number, cohort[part::processes], model) for part in range(processes))
            sums, weights = zip(*spread(Worker.train, shares), strict=True)
            model = (np.sum(sums, axis=0) / sum(weights)).astype(np.float32)
            watch.trained()
            if is_evaluated(work.config, number):
                judge(number)
    return model


Spread = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], list[Any]]

# The worker of this process, where the process is one of a pool.
_worker: Worker | None = None


@contextmanager
def _spread(work: Work, method: str, processes: int) -> Iterator[Spread]:
    """Yield what calls a method of the workers with each tuple of arguments, side by side."""
    if processes == 1:
        alone = Worker(work, method)
        yield lambda job, calls: [job(alone, *arguments) for arguments in calls]
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, _open, (work, method)) as pool:
        yield lambda job, calls: [
            future.result() for future in [pool.submit(_call, job.__name__, c) for c in calls]
        ]


def _open(work: Work, method: str) -> None:
    global _worker
    _worker = Worker(work, method)


def _call(job: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(_worker, job)(*arguments)


def main(method: str, work: Path, out: Path, processes: int = 0, threads: int = 1) -> None:
    """Run a side in this process and write its outcome into ``out``."""
    watch = Watch()
    # Before the first operation: a pool of threads does not survive a fork.
    torch.set_num_threads(threads)
    # PyTorch imports its compiler with the first optimiser, for a second; once is enough.
    torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    run(read_work(work), method, processes or cores(), watch)
    watch.write(out)


if __name__ == "__main__":
    name, work_path, out_path, *counts = sys.argv[1:]
    main(name, Path(work_path), Path(out_path), *map(int, counts))
