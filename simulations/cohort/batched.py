"""The batched fleet: chunks of devices trained as one computation each, on all cores.

Threads share one base, one set of windows and one merged network. PyTorch and oneDNN compute
outside Python's lock, so two threads on small nets measured as fast as two processes, which would
import everything once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fleet.adapt.attach import single_thread
from fleet.adapt.cohort.train import CHUNK_DEVICES
from fleet.errors import InputError
from fleet.federate.wire import Payload
from simulations.allocator import keep_freed_memory
from simulations.cohort.chunks import chunks_of, in_order
from simulations.cohort.fleet import LearnerFleet, RunConfigValues
from simulations.cohort.worker import ChunkWorker
from simulations.engines import LARGEST_WORKERS
from simulations.machine import cores

__all__ = ["LARGEST_WORKERS", "BatchedFleet"]

# Devices that are judged together: a few hundred windows.
JUDGED_TOGETHER = 8

Answer = TypeVar("Answer")


class BatchedFleet(LearnerFleet):
    """The devices of a run, trained together where that is the same training.

    Its updates are those of :class:`~simulations.cohort.fleet.LearnerFleet` up to the order in
    which floating-point numbers are added; they do not depend on the number of workers.

    Args:
        run_config: See :class:`~simulations.cohort.fleet.LearnerFleet`.
        workers: Threads that train, 1 to :data:`LARGEST_WORKERS`; None for one per core.

    Raises:
        InputError: ``workers`` when there are too few or too many.
    """

    def __init__(self, run_config: RunConfigValues, workers: int | None = None) -> None:
        super().__init__(run_config)
        wanted = min(cores(), LARGEST_WORKERS) if workers is None else workers
        if not 1 <= wanted <= LARGEST_WORKERS:
            raise InputError(
                "workers",
                f"from 1 to {LARGEST_WORKERS} workers may train, not {wanted}",
                f"This machine has {cores()} cores for this process.",
            )
        keep_freed_memory()
        self._pool = ThreadPoolExecutor(
            wanted, "cohort", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._workers = [ChunkWorker(self) for _ in range(wanted)]
        self._idle: SimpleQueue[ChunkWorker] = SimpleQueue()
        for each in self._workers:
            self._idle.put(each)

    def train(self, message: Payload, partitions: Sequence[int]) -> list[Payload | Exception]:
        """Answer a plan, see :class:`~simulations.cohort.fleet.CohortFleet`."""
        chunks = chunks_of(partitions, self.train_windows, CHUNK_DEVICES)
        with single_thread():
            if not all(each.prepare(message) for each in self._workers):
                alone = self._workers[0]
                answers = [alone.train(message, chunk) for chunk in chunks]
                return in_order(partitions, chunks, answers)
        answers = self._everywhere(lambda worker, chunk: worker.train(message, chunk), chunks)
        return in_order(partitions, chunks, answers)

    def evaluate(
        self, message: Payload, partitions: Sequence[int]
    ) -> list[NDArray[np.int64] | Exception]:
        """Judge a release, see :class:`~simulations.cohort.fleet.CohortFleet`."""
        chunks = chunks_of(partitions, lambda _: 0, JUDGED_TOGETHER)
        with single_thread():
            for each in self._workers:
                each.prepare_to_judge(message)
        answers = self._everywhere(lambda worker, chunk: worker.evaluate(message, chunk), chunks)
        return in_order(partitions, chunks, answers)

    def close(self) -> None:
        """End the threads; nothing can be asked any more."""
        self._pool.shutdown()

    def _everywhere(
        self,
        answer: Callable[[ChunkWorker, Sequence[int]], list[Answer]],
        chunks: Sequence[Sequence[int]],
    ) -> list[list[Answer]]:
        """Answer chunks on all threads; an exception of one chunk ends all."""
        # Held here as well: threads that set and restore a limit of the process would race.
        with single_thread():
            asked = [self._pool.submit(self._answer, answer, chunk) for chunk in chunks]
            try:
                return [each.result() for each in asked]
            finally:
                _cancel(asked)

    def _answer(
        self, answer: Callable[[ChunkWorker, Sequence[int]], list[Answer]], chunk: Sequence[int]
    ) -> list[Answer]:
        # As many workers as threads: one is always idle.
        worker = self._idle.get_nowait()
        try:
            return answer(worker, chunk)
        finally:
            self._idle.put(worker)


def _cancel(asked: Sequence[Future[list[Answer]]]) -> None:
    """Leave no chunk to compute behind, and none that still computes."""
    for each in asked:
        each.cancel()
    for each in asked:
        if not each.cancelled():
            each.exception()
