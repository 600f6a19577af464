"""Processes that outlived a supervisor that was killed, ended before new ones start."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress

from fleet.supervise.child import is_same
from fleet.supervise.record import RunRecord
from fleet.supervise.told import Tell, Told

__all__ = ["LIMIT_S", "end_leftovers"]

LIMIT_S = 20.0


def end_leftovers(record: RunRecord | None, tell: Tell, limit_s: float = LIMIT_S) -> None:
    """End what a record's supervisor left running; the caller holds the lock.

    The kernel asks the children of a killed supervisor to end, so one is found here only while it
    still does, or hangs. A second SuperNode with the same key would be refused, a second agent
    would find the store taken, a second SuperLink its port.

    Args:
        record: The record of the supervisor before.
        tell: Told of each.
        limit_s: Seconds from SIGTERM to SIGKILL, and from that to giving up.
    """
    for name, process in record.processes.items() if record is not None else ():
        try:
            handle = os.pidfd_open(process.pid) if process.pid > 0 else -1
        except OSError:
            continue
        # After the opening: from now on the handle is that process, whatever the pid becomes.
        if handle >= 0:
            try:
                if is_same(process.pid, process.ticks):
                    _end(handle, process.pid, limit_s)
                    tell(
                        Told("leftover.ended", f"one left by a killed run, pid {process.pid}", name)
                    )
            finally:
                os.close(handle)


def _end(handle: int, pid: int, limit_s: float) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        if not select.select([handle], [], [], limit_s)[0]:
            os.killpg(pid, signal.SIGKILL)
            select.select([handle], [], [], limit_s)
