"""What the supervisor writes down about itself, and the lock that makes it the only one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fleet.errors import StorageError
from fleet.files import write_text
from fleet.supervise.child import is_same, up_s

__all__ = [
    "LOCK_FILE",
    "RUN_FILE",
    "ProcessRecord",
    "Program",
    "RunLock",
    "RunRecord",
    "read_run",
    "standing",
    "standing_line",
    "write_run",
]

RUN_FILE = "run.json"
LOCK_FILE = "run.lock"
MAX_BYTES = 64 * 2**10
# One that is started and refused again and again is up for seconds in between.
RECOVERED_S = 60.0

IsSame = Callable[[int, int], bool]


@dataclass(frozen=True)
class Program:
    """The command that supervises, as its messages name it.

    Args:
        run: The command itself, e.g. ``fleet-device run``.
        status: The command that shows what runs.
        option: The option that names another folder.
    """

    run: str
    status: str
    option: str


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProcessRecord(_Record):
    """One child: ``phase`` as in :class:`~fleet.supervise.restarts.Phase`.

    ``pid`` and ``ticks`` (its start, see ``ticks_of``) are 0 while it does not run.
    """

    phase: str
    pid: int = 0
    ticks: int = 0
    since: datetime
    restarts: int = Field(default=0, ge=0)
    recycles: int = Field(default=0, ge=0)
    reasons: tuple[str, ...] = ()


class RunRecord(_Record):
    """The supervisor and its children; ``ended`` once it has stopped of its own accord."""

    schema_version: int = 1
    pid: int
    ticks: int
    since: datetime
    ended: datetime | None = None
    why: str = ""
    processes: dict[str, ProcessRecord] = Field(default_factory=dict)


def write_run(state: Path, record: RunRecord) -> None:
    """Write the record durably.

    Raises:
        StorageError: ``disk-full``, ``read-only`` or ``write-failed``.
    """
    write_text(state / RUN_FILE, record.model_dump_json(indent=1) + "\n")


def read_run(state: Path) -> RunRecord | None:
    """Return the record; ``None`` when there is none that can be read."""
    try:
        with open(state / RUN_FILE, "rb") as file:
            return RunRecord.model_validate_json(file.read(MAX_BYTES))
    except (OSError, ValidationError):
        return None


def standing(state: Path, same: IsSame = is_same) -> dict[str, Any] | None:
    """Return the record as JSON holds it, with what is true of it now; ``None``: no record.

    ``running`` tells whether the supervisor runs; ``stale``: it neither runs nor said that it
    ended, so it was killed. Each process has ``alive``, and ``up_s`` in seconds or ``None``.
    """
    record = read_run(state)
    if record is None:
        return None
    running = record.ended is None and same(record.pid, record.ticks)
    data = record.model_dump(mode="json")
    for name, process in record.processes.items():
        alive = same(process.pid, process.ticks)
        up = round(max(0.0, up_s(process.ticks)), 1) if alive else None
        data["processes"][name].update(alive=alive, up_s=up)
    return {**data, "running": running, "stale": record.ended is None and not running}


def standing_line(data: Mapping[str, Any] | None, program: Program) -> str:
    """Return what :func:`standing` knows as one line for people."""
    if data is None:
        return f"not by {program.run}"
    processes = "; ".join(_process_line(name, each) for name, each in data["processes"].items())
    if data["running"]:
        return processes
    if not data["stale"]:
        return f"no, ended {data['ended']} ({data['why']})"
    left = any(each["alive"] for each in data["processes"].values())
    told = f"no; its supervisor, pid {data['pid']}, was killed"
    return f"{told} and left {processes}" if left else told


class RunLock:
    """Held while a supervisor runs; the system lets go of it however the process ends.

    Args:
        state: State directory.
        program: Who asks.

    Raises:
        StorageError: ``already-running``, or ``write-failed`` when there can be no lock.
    """

    def __init__(self, state: Path, program: Program) -> None:
        path = state / LOCK_FILE
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                "write-failed",
                f"{path} cannot be opened ({error.strerror})",
                f"Give the folder to the user that runs it, or choose another {program.option}.",
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise _taken(state, program) from error

    def close(self) -> None:
        """Let go; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _process_line(name: str, each: Mapping[str, Any]) -> str:
    restarts, reasons = each["restarts"], each["reasons"]
    again = ""
    if restarts:
        # The cause of an end that is long over would read as one of now.
        is_over = each["alive"] and each["up_s"] >= RECOVERED_S
        last = reasons[-1].partition(":")[0] if is_over else reasons[-1]
        again = f", {restarts} restart{'s' if restarts > 1 else ''} (last: {last})"
    if not each["alive"]:
        return f"{name} is down{again}"
    return f"{name} {each['pid']}, up {_span(each['up_s'])}{again}"


def _span(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _taken(state: Path, program: Program) -> StorageError:
    record = read_run(state)
    whose = f" (pid {record.pid})" if record is not None and record.ended is None else ""
    return StorageError(
        "already-running",
        f"another {program.run}{whose} supervises {state}",
        f"See: {program.status}. Stop that one first, with SIGTERM.",
    )
