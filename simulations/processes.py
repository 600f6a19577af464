"""A command and every process that it starts: their end, and how much memory they hold.

Processes are known by a variable in their environment, which children inherit, so that those that
detach themselves (Flower's SuperLink, Ray's daemons) are found as well. A guard, a process of its
own, ends them where nobody else can: when whoever ran the command was killed itself.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fleet.errors import RoundError

__all__ = ["MARKER", "MEMORY", "Command", "Finished", "end", "execute", "is_alive", "processes_of"]

MARKER = "COREFLEET_COMMAND"
MEMORY = "largest sum of PSS over all processes of a command, sampled from /proc"
# Reading a process's memory map costs kernel time, which must not slow down what is measured: at
# most this often, and at most this share of one core.
SAMPLE_S = 0.1
SAMPLING_SHARE = 0.05
END_TIMEOUT_S = 20.0
POLITE_S = 3.0
OVER = b"over"


@dataclass(frozen=True)
class Command:
    """A command as a user would give it.

    Args:
        words: Program and arguments.
        environment: What is added to the environment.
    """

    words: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Finished:
    """A command that has ended.

    Args:
        code: Exit code.
        seconds: From its start to its end, imports included.
        peak_bytes: See :data:`MEMORY`; 0 where it was not measured or there is no ``/proc``.
    """

    code: int
    seconds: float
    peak_bytes: int = 0


def execute(
    command: Command, cwd: Path, log: Path, timeout_s: float, *, memory: bool = False
) -> Finished:
    """Run a command to its end, then end whatever it left running.

    Nothing of it outlives this process either, however that ends, where there is a ``/proc``.

    Args:
        command: What to run.
        cwd: Its working folder.
        log: File of all that it prints.
        timeout_s: Seconds that it may take.
        memory: Sample the memory of its processes, which costs some time of a core.

    Raises:
        RoundError: ``command-timeout``, or ``process-outlives`` when one cannot be ended.
    """
    run = uuid.uuid4().hex
    environment = {**os.environ, **command.environment, MARKER: run}
    sampler = _Memory(run)
    try:
        with _guarded(run), log.open("wb") as output, sampler if memory else nullcontext():
            start = time.perf_counter()
            code = _run(command.words, cwd, environment, output, timeout_s)
            seconds = time.perf_counter() - start
    except subprocess.TimeoutExpired as error:
        text = f"{command.words[0]} took more than {timeout_s:g} s; see {log}"
        raise RoundError("command-timeout", text) from error
    return Finished(code, seconds, sampler.peak_bytes)


def _run(
    words: Sequence[str],
    cwd: Path,
    environment: Mapping[str, str],
    output: IO[bytes],
    timeout_s: float,
) -> int:
    """Run a command in a session of its own; what it leaves running is not waited for."""
    with subprocess.Popen(
        words,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            return process.wait(timeout_s)
        except BaseException:
            process.kill()
            raise


@contextmanager
def _guarded(run: str) -> Iterator[None]:
    """End a run's processes after the block; if we are killed in it, the guard does."""
    # Without the mark of whoever runs us: the guard must outlive the end of that run.
    environment = {name: value for name, value in os.environ.items() if name != MARKER}
    guard = subprocess.Popen(
        [sys.executable, "-m", __name__, run],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    word = b""
    try:
        yield
    finally:
        try:
            end(run)
            word = OVER
        finally:
            try:
                guard.communicate(word, 2 * END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                guard.kill()
                guard.communicate()


def _guard(run: str) -> None:
    """Wait for the end of whoever started us, and end the run's processes unless they did."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The system closes the pipe of a process that is gone, whatever ended it.
    if sys.stdin.buffer.read() != OVER:
        # At once: the run may be taken up again any moment, and would have a second writer.
        end(run, politely=False)


class _Memory:
    """Samples the memory of a run's processes in a thread.

    It is the sum of proportional set sizes (PSS), where a page that n processes share counts 1/n
    in each.
    """

    def __init__(self, run: str) -> None:
        self.peak_bytes = 0
        self._run, self._over = run, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        pause = 0.0
        while not self._over.wait(pause):
            start = time.thread_time()
            held = sum(map(_pss_bytes, processes_of(self._run)))
            self.peak_bytes = max(self.peak_bytes, held)
            pause = max(SAMPLE_S, (time.thread_time() - start) / SAMPLING_SHARE)


def processes_of(run: str, variable: str = MARKER) -> set[int]:
    """Return the pids of a run's live processes; none where there is no ``/proc``.

    Args:
        run: Their mark.
        variable: Variable of their environment that holds it.
    """
    marker = f"{variable}={run}".encode()
    try:
        everyone = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return set()
    parents = {pid: _parent(pid) for pid in everyone}
    found = {pid for pid in parents if _is_marked(pid, marker)}
    # A process that renames itself may overwrite the environment that we look for.
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid for pid in found if parents[pid] is not None}


def _is_marked(pid: int, marker: bytes) -> bool:
    try:
        return marker in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _parent(pid: int) -> int | None:
    """Return the parent's pid; ``None`` for a process that has ended."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0
    return next((int(each.split()[1]) * 1024 for each in lines if each.startswith("Pss:")), 0)


def is_alive(pid: int) -> bool:
    """Tell whether ``pid`` runs; one that has ended and was not waited for does not."""
    return _parent(pid) is not None


def end(run: str, *, politely: bool = True, variable: str = MARKER) -> None:
    """End a run's processes.

    Args:
        run: Their mark.
        politely: Ask them first, and give them ``POLITE_S`` to end by themselves.
        variable: See :func:`processes_of`.

    Raises:
        RoundError: ``process-outlives`` when one cannot be ended.
    """
    until = time.monotonic() + END_TIMEOUT_S
    number = signal.SIGTERM if politely else signal.SIGKILL
    seen: set[int] = set()
    while alive := processes_of(run, variable) | set(filter(is_alive, seen)):
        if time.monotonic() > until:
            raise RoundError("process-outlives", f"processes {sorted(alive)} cannot be ended")
        seen |= alive
        _signal_and_wait(alive, number)
        number = signal.SIGKILL


def _signal_and_wait(pids: set[int], number: signal.Signals) -> None:
    """Signal processes, and wait for their ends for ``POLITE_S`` at most."""
    until = time.monotonic() + POLITE_S
    with ExitStack() as stack:
        handles = []
        for pid in pids:
            with suppress(ProcessLookupError):
                handle = os.pidfd_open(pid)
                stack.callback(os.close, handle)
                signal.pidfd_send_signal(handle, number)
                handles.append(handle)
        for handle in handles:
            select.select([handle], [], [], max(0.0, until - time.monotonic()))


if __name__ == "__main__":
    _guard(sys.argv[1])
