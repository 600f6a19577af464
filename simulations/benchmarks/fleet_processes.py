"""Whose time it is: CPU and memory of a fleet in a box, by kind of process, from ``/proc``.

A process that has ended and was waited for is counted with its parent, so what a device's SuperNode
starts for every message is the device's.
"""

from __future__ import annotations

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["DEVICES", "SERVER", "Process", "Sample", "Sampler", "cpu_at", "kinds_of", "peak_of"]

SAMPLE_S = 0.5
DEVICES, BOX = "devices", "box"
# What stands in the command of a process, with its kind; the first that fits.
KINDS = (
    ("fleet-device", DEVICES),
    ("server.service.front", "front"),
    ("flower-superlink", "superlink"),
    ("flwr-serverapp", "serverapp"),
    ("flower-superexec", "superexec"),
    ("server.control", "control"),
    ("server.service.keeper", "keeper"),
    ("server.metrics", "metrics"),
    ("server up", "supervisor"),
)
SERVER = tuple(kind for _, kind in KINDS[1:])
"""Kinds of the server's processes."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


@dataclass(frozen=True)
class Process:
    """A process as ``/proc`` shows it.

    Args:
        parent: Its pid.
        command: Words with blanks between.
        cpu_s: Of it, and of its children that were waited for.
        resident_bytes: Memory that it holds.
    """

    parent: int
    command: str
    cpu_s: float
    resident_bytes: int


@dataclass(frozen=True)
class Sample:
    """What all processes of a box had used at one time.

    Args:
        at_s: Seconds since the epoch.
        cpu_s: CPU seconds since their starts, by kind.
        resident_bytes: Memory that they hold, by kind.
    """

    at_s: float
    cpu_s: Mapping[str, float]
    resident_bytes: Mapping[str, int]


@dataclass
class Sampler:
    """Looks at the processes of a box twice a second, in a thread.

    Args:
        box: Its folder, as it stands in the command that made it.

    Attributes:
        samples: In the order of time.
    """

    box: str
    samples: list[Sample] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Sampler:
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        assert self._thread is not None
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(SAMPLE_S):
            now, kinds = time.time(), kinds_of(everyone(), os.getpid(), self.box)
            cpu: dict[str, float] = {}
            held: dict[str, int] = {}
            for process, kind in kinds:
                cpu[kind] = cpu.get(kind, 0.0) + process.cpu_s
                held[kind] = held.get(kind, 0) + process.resident_bytes
            self.samples.append(Sample(now, cpu, held))


def everyone() -> dict[int, Process]:
    """Return all processes by their pids; none where there is no ``/proc``."""
    try:
        names = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return {}
    found = {int(name): _process(Path("/proc") / name) for name in names}
    return {pid: process for pid, process in found.items() if process is not None}


def _process(folder: Path) -> Process | None:
    try:
        # The name before may hold anything, also blanks and brackets.
        words = (folder / "stat").read_text().rpartition(")")[2].split()
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has just ended
        return None
    ticks = sum(map(int, words[11:15]))
    return Process(int(words[1]), command, ticks / TICKS_PER_S, int(words[21]) * PAGE_BYTES)


def kinds_of(processes: Mapping[int, Process], parent: int, box: str) -> list[tuple[Process, str]]:
    """Return the processes of a box with their kinds.

    Args:
        processes: All there are, by pid.
        parent: Pid of whoever started the box.
        box: Stands in its command.
    """
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    found: list[tuple[Process, str]] = []
    left = [(pid, BOX) for pid in children.get(parent, []) if box in processes[pid].command]
    while left:
        pid, above = left.pop()
        kind = DEVICES if above == DEVICES else _kind(processes[pid].command, above)
        found.append((processes[pid], kind))
        left += [(child, kind) for child in children.get(pid, [])]
    return found


def _kind(command: str, above: str) -> str:
    return next((kind for part, kind in KINDS if part in command), above)


def cpu_at(samples: Sequence[Sample], kind: str, at_s: float) -> float:
    """Return the CPU seconds that a kind had used at a time, between two samples by a line.

    Args:
        samples: In the order of time.
        kind: Of process.
        at_s: Seconds since the epoch.
    """
    index = bisect_left(samples, at_s, key=lambda sample: sample.at_s)
    before, after = samples[max(index - 1, 0)], samples[min(index, len(samples) - 1)]
    one, two = before.cpu_s.get(kind, 0.0), after.cpu_s.get(kind, 0.0)
    span = after.at_s - before.at_s
    return one if span <= 0 else one + (two - one) * (at_s - before.at_s) / span


def peak_of(samples: Sequence[Sample], *kinds: str) -> int:
    """Return the largest memory that kinds held at once, bytes."""
    held = (sum(sample.resident_bytes.get(kind, 0) for kind in kinds) for sample in samples)
    return max(held, default=0)
