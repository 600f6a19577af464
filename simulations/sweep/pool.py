"""Processes that do one job after another; one that dies takes only its own job with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from multiprocessing.context import ForkServerProcess
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Lost", "Pool"]

Item = TypeVar("Item")
Done = TypeVar("Done")
PATIENCE_S = 10.0
# New processes that are tried for one item before it is given up.
HIRES = 3


class Lost:
    """In place of a result: the process was ended from outside, or crashed.

    Args:
        code: Its exit code; negative for a signal.
    """

    def __init__(self, code: int | None) -> None:
        self.code = code


class _Worker:
    def __init__(self, job: Callable[[Any], Any], preload: list[str]) -> None:
        # A server that has imported all once forks each worker in milliseconds.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(preload)
        self.pipe, theirs = context.Pipe()
        # No daemon: a job may have processes of its own.
        self.process: ForkServerProcess = context.Process(target=_serve, args=(job, theirs))
        self.process.start()
        theirs.close()
        self.item: Any = None

    def end(self, *, now: bool) -> None:
        self.pipe.close()
        if now:
            self.process.terminate()
        self.process.join(PATIENCE_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()


class Pool(Generic[Item, Done]):
    """A bounded number of processes; none is started before there is work.

    Left by an error or an interrupt, it ends them at once. They do not see Ctrl-C themselves, and
    they end when their parent is gone.

    Args:
        count: Processes at most.
        job: A function of a module, run in a process; what it raises ends the process.
        preload: Modules that are imported once for all of them.
    """

    def __init__(self, count: int, job: Callable[[Item], Done], preload: Iterable[str]) -> None:
        self._count = count
        self._job = job
        self._preload = list(preload)
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool[Item, Done]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._workers:
            self._workers.pop().end(now=kind is not None)

    def run(
        self, items: Iterable[Item], on_start: Callable[[Item], None] = lambda item: None
    ) -> Iterator[tuple[Item, Done | Lost]]:
        """Do all items and yield each with its result as soon as it is there.

        Args:
            items: In the order in which they are begun.
            on_start: Called here as an item is handed out.
        """
        waiting, idle = iter(items), list(self._workers)
        busy: dict[Any, _Worker] = {}
        while True:
            while len(busy) < self._count and (item := next(waiting, self)) is not self:
                on_start(item)  # type: ignore[arg-type]
                handed = self._hand(item, idle)  # type: ignore[arg-type]
                if isinstance(handed, Lost):
                    yield item, handed  # type: ignore[misc]
                else:
                    busy[handed.pipe] = handed
            if not busy:
                return
            for pipe in connection.wait(list(busy)):
                worker = busy.pop(pipe)
                result = self._result(worker)
                if not isinstance(result, Lost):
                    idle.append(worker)
                yield worker.item, result

    def _hand(self, item: Item, idle: list[_Worker]) -> _Worker | Lost:
        """Give an item to whoever is idle and alive, or to a new process; who is dead is let go."""
        lost = Lost(None)
        for _ in range(len(idle) + HIRES):
            worker = idle.pop() if idle else self._hire()
            try:
                worker.pipe.send(item)
            except ConnectionError:
                lost = self._let_go(worker)
            else:
                worker.item = item
                return worker
        return lost

    def _hire(self) -> _Worker:
        worker = _Worker(self._job, self._preload)
        self._workers.append(worker)
        return worker

    def _result(self, worker: _Worker) -> Done | Lost:
        try:
            result: Done = worker.pipe.recv()
        except (EOFError, ConnectionError):
            return self._let_go(worker)
        return result

    def _let_go(self, worker: _Worker) -> Lost:
        self._workers.remove(worker)
        worker.end(now=False)
        return Lost(worker.process.exitcode)


def _serve(job: Callable[[Any], Any], pipe: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides how to end
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        pipe.send(job(item))


def _leave_with_parent() -> None:
    """End this process when its parent is gone, in the middle of a job too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
