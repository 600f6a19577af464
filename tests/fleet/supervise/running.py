"""A supervisor in a process of its own: its events with deadlines, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulations.processes import is_alive, processes_of

ROOT = Path(__file__).parents[3]
MARKER = "COREFLEET_SUPERVISED"
LIMIT_S = 60.0


class Running:
    """A command that prints an event as JSON per line.

    Args:
        command: Program and arguments.
        mark: Marks it and all that it starts.
        stdout: Where its events go instead of here.
    """

    def __init__(self, command: Sequence[str], mark: str, stdout: int | None = None) -> None:
        self.mark = mark
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, MARKER: mark},
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.seen: list[dict[str, Any]] = []
        self.errors: list[str] = []
        self._events: queue.Queue[str | None] = queue.Queue()
        self._threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def children(self) -> set[int]:
        """What it started and still runs."""
        return processes_of(self.mark, MARKER) - {self.process.pid}

    def until(self, event: str, process: str = "") -> dict[str, Any]:
        """Return the next event of that name."""
        while (line := self._events.get(timeout=LIMIT_S)) is not None:
            self.seen.append(json.loads(line))
            last = self.seen[-1]
            if last["event"] == event and process in ("", last.get("process", "")):
                return last
        raise AssertionError(f"no {event}: {self.seen} {self.errors}")

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal; return the exit code, once it has ended and all is read."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(LIMIT_S)
        for thread in self._threads:
            thread.join(LIMIT_S)
        with contextlib.suppress(queue.Empty):
            while (line := self._events.get_nowait()) is not None:
                self.seen.append(json.loads(line))
        return code

    def all_gone(self) -> bool:
        """Wait for the ends of all that it started."""
        return gone(self.children)

    def close(self) -> None:
        for pid in processes_of(self.mark, MARKER):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with self.process:
            pass

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._events.put(line)
        self._events.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors.append(line.rstrip("\n"))


def gone(pids: set[int]) -> bool:
    """Wait until processes that are no children of ours have ended."""
    until = time.monotonic() + LIMIT_S
    paced = threading.Event()
    while any(map(is_alive, pids)) and time.monotonic() < until:
        paced.wait(0.01)
    return not any(map(is_alive, pids))


@contextmanager
def supervised(
    state: Path,
    agent: str,
    supernode: str = "",
    stop_s: float = 20.0,
    stdout: int | None = None,
) -> Iterator[Running]:
    """Run a supervisor of stand-ins in these modes; nothing of it outlives the block."""
    script = "tests.fleet.supervise.supervised"
    command = [sys.executable, "-m", script, str(state), agent, supernode, str(stop_s)]
    running = Running(command, uuid.uuid4().hex, stdout)
    try:
        yield running
    finally:
        running.close()
