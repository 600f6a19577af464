"""Worker processes of the bench: ended by their parent alone, and gone when it is."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from types import TracebackType
from typing import Any

from fleet.errors import RoundError
from simulations.progress import Progress

__all__ = ["Workers"]


class Workers:
    """A pool that does stage after stage; none is started before there is work.

    Left by an error or an interrupt, it ends the processes at once: what is done is on disk, and a
    base that is half trained is not worth minutes of waiting.

    Args:
        count: Processes.
        begin: Run first in each of them.
        arguments: Of ``begin``.
    """

    def __init__(self, count: int, begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        self._count = count
        self._pool = ProcessPoolExecutor(
            count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(begin, arguments),
        )

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(
        self,
        progress: Progress,
        name: str,
        job: Callable[[Any], str],
        items: Iterable[Any],
        total: int,
    ) -> None:
        """Do a stage.

        Args:
            progress: Told of the stage, and of each item what its job returned.
            name: Of the stage.
            job: A function of a module, run in a worker.
            items: What is left to do, in order.
            total: Items of the stage, those included that were done before.

        Raises:
            RoundError: ``worker-died`` when the system ended a worker.
            FleetError: What a job raises.
        """
        waiting = list(items)
        progress.stage(name, len(waiting), f"{total - len(waiting)} of {total} were done")
        running: set[Future[str]] = set()
        try:
            while waiting or running:
                # A short queue: the last jobs are then spread over all workers.
                while waiting and len(running) < 2 * self._count:
                    running.add(self._pool.submit(job, waiting.pop(0)))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    progress.advance(future.result())
        except BrokenProcessPool as error:
            raise RoundError(
                "worker-died",
                "a worker process was ended from outside, most often for want of memory",
                "What is done is kept; run the same command with fewer --workers.",
            ) from error


def _begin(begin: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides how to end
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    begin(*arguments)


def _leave_with_parent() -> None:
    """End this process when its parent is gone: a queue alone would keep it waiting for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
