"""Which process holds a registry, and whether one that did is known to be dead.

A pid means something on one boot of one machine and inside one container alone; with the boot's id,
the namespace of its pids and the time at which it started it names one process, which is either
there or dead. Of a process elsewhere nothing is known, so there the lease's expiry decides.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

from fleet.supervise.child import ticks_of
from server.registry.lease import Holder

__all__ = ["is_gone", "this_process"]

LARGEST_HOST = 128
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PIDS = Path("/proc/self/ns/pid")


def this_process() -> Holder:
    """Return this process as the holder of a lease."""
    pid = os.getpid()
    host = platform.node()[:LARGEST_HOST] or "an unnamed host"
    return Holder(host=host, place=_place(), pid=pid, ticks=ticks_of(pid) or 0)


def is_gone(holder: Holder) -> bool:
    """Tell whether a process is known to be dead; False where that cannot be known.

    >>> is_gone(this_process())
    False
    """
    place = _place()
    return bool(place) and holder.place == place and ticks_of(holder.pid) != holder.ticks


def _place() -> str:
    try:
        return f"{_BOOT.read_text().strip()}/{os.readlink(_PIDS)}"
    except OSError:
        return ""
