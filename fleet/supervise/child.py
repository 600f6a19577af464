"""A child process in a group of its own, which ends whole and leaves no zombie.

The child is started by a line of Python that asks the kernel to end it with the supervisor
(``PR_SET_PDEATHSIG``) and then becomes the program. A function between fork and exec could do the
same, but may deadlock; what the child itself starts ends with its group, or by its own watch.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

__all__ = ["Child", "Exit", "adopt_orphans", "is_same", "ticks_of", "up_s"]

# argv: the supervisor's pid, then the command. Python ignores two signals, a shell's background
# jobs two more, and nohup one; exec would keep that.
LAUNCH = (
    "import ctypes,os,signal,sys;"
    "signal.signal(signal.SIGPIPE,signal.SIG_DFL);"
    "signal.signal(signal.SIGXFSZ,signal.SIG_DFL);"
    "signal.signal(signal.SIGINT,signal.SIG_DFL);"
    "signal.signal(signal.SIGQUIT,signal.SIG_DFL);"
    "signal.signal(signal.SIGHUP,signal.SIG_DFL);"
    "ctypes.CDLL(None).prctl(1,int(signal.SIGTERM),0,0,0);"
    "os.getppid()==int(sys.argv[1]) or sys.exit(143);"
    "os.execv(sys.argv[2],sys.argv[2:])"
)
CHUNK_BYTES = 64 * 2**10
# A killed group is gone in milliseconds, unless a driver holds one of it.
GROUP_LIMIT_S = 2.0
SUBREAPER = 36


@dataclass(frozen=True)
class Exit:
    """How a process ended.

    Args:
        status: Exit code; negative: the signal that ended it.
    """

    status: int

    def reason(self, flower_code: int | None = None) -> str:
        """Return the end in words.

        Args:
            flower_code: Flower's own exit code, which it prints; its processes exit with 1.
        """
        if self.status < 0:
            with suppress(ValueError):
                return f"signal {signal.Signals(-self.status).name}"
            return f"signal {-self.status}"
        return f"exit code {self.status if flower_code is None else flower_code}"


class Child:
    """A running process.

    Args:
        command: Absolute program and arguments.
        environment: All of its environment.

    Raises:
        OSError: When it cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        launcher = [sys.executable, "-I", "-S", "-c", LAUNCH, str(os.getpid())]
        self._process = subprocess.Popen(
            [*launcher, *command],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdout is not None
        self.output: int = self._process.stdout.fileno()
        os.set_blocking(self.output, False)
        self.pid = self._process.pid
        self.ticks = ticks_of(self.pid) or 0

    def read(self) -> bytes | None:
        """Return what it printed; ``None``: nothing now, ``b""``: never again."""
        try:
            return os.read(self.output, CHUNK_BYTES)
        except BlockingIOError:
            return None

    def ask_to_end(self) -> None:
        """Send SIGTERM to the process alone: it ends its own children, or we do after it."""
        # Not reaped yet, so that the pid is still its own.
        if self._process.returncode is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the whole group."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def ended(self) -> Exit | None:
        """Return how it ended, its group gone and itself reaped; ``None`` while it runs."""
        waits = os.WEXITED | os.WNOWAIT | os.WNOHANG
        if self._process.returncode is None:
            if os.waitid(os.P_PID, self.pid, waits) is None:
                return None
            # Before the reaping, which would free the group's number for another.
            self.kill()
            status = self._process.wait()
            _reap_group(self.pid)
            return Exit(status)
        return Exit(self._process.returncode)

    def close(self) -> None:
        """Close our end of its output."""
        if self._process.stdout is not None:
            self._process.stdout.close()


def adopt_orphans() -> None:
    """Become the parent of what our children leave behind, so that nothing stays a zombie.

    As the first process of a container we are that anyhow; elsewhere init may be slow.
    """
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def _reap_group(group: int) -> None:
    """Wait, bounded, until a killed group has no member left; those that come to us are reaped."""
    until = time.monotonic() + GROUP_LIMIT_S
    while time.monotonic() < until:
        try:
            while os.waitpid(-group, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.002)


def ticks_of(pid: int) -> int | None:
    """Return when a live process started, in ticks since boot; ``None``: there is none.

    Together with the pid it names one process, since pids are used again.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def is_same(pid: int, ticks: int) -> bool:
    """Tell whether the process that once had ``pid`` and ``ticks`` still runs."""
    return pid > 0 and ticks_of(pid) == ticks


def up_s(ticks: int) -> float:
    """Return for how long a process that started at ``ticks`` has been up, seconds.

    Counted since boot, so a clock that was set meanwhile changes nothing.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
