"""Which process holds a registry, and whether one that did is known to be dead.

A pid means something on one boot of one machine and inside one container alone; with the boot's id,
the namespace of its pids and the time at which it started it names one process, which is either
there or dead. A machine that was started again has none of the processes of its boot before: there
the pids mean nothing any more, and who was not heard of since this boot began is dead. Of a process
elsewhere nothing is known, so there the lease's expiry decides.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from pathlib import Path

from fleet.supervise.child import ticks_of
from server.registry.lease import Holder

__all__ = ["is_gone", "this_process"]

LARGEST_HOST = 128
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PIDS = Path("/proc/self/ns/pid")
_MACHINE = Path("/etc/machine-id")
_USE = b"corefleet.lease.1:"


def this_process() -> Holder:
    """Return this process as the holder of a lease."""
    pid = os.getpid()
    return Holder(host=_host(), place=_place(), pid=pid, ticks=ticks_of(pid) or 0)


def is_gone(holder: Holder, silent_s: float) -> bool:
    """Tell whether a process is known to be dead; False where that cannot be known.

    >>> is_gone(this_process(), 0.0)
    False

    Args:
        holder: The process.
        silent_s: For how long nothing was heard of it, seconds.
    """
    place = _place()
    if place and holder.place == place:
        return ticks_of(holder.pid) != holder.ticks
    boot, _, machine = _parts(place)
    boot_then, _, machine_then = _parts(holder.place)
    if not machine or (machine_then, holder.host) != (machine, _host()) or boot_then == boot:
        return False
    # Two machines made of one image can have one id and one name; only one that lives is heard.
    up_s = _up_s()
    return up_s is not None and silent_s > up_s


def _place() -> str:
    """Return boot, namespace of pids and, where it has an id, machine; empty if unknown."""
    try:
        here = f"{_BOOT.read_text().strip()}/{os.readlink(_PIDS)}"
    except OSError:
        return ""
    try:
        machine = _MACHINE.read_bytes().strip()
    except OSError:
        machine = b""
    # The id itself is not to leave its machine, so what is kept is derived from it.
    return f"{here}/{hashlib.sha256(_USE + machine).hexdigest()[:16]}" if machine else here


def _parts(place: str) -> tuple[str, str, str]:
    boot, pids, machine = (*place.split("/"), "", "")[:3]
    return boot, pids, machine


def _host() -> str:
    return platform.node()[:LARGEST_HOST] or "an unnamed host"


def _up_s() -> float | None:
    """Return for how long this boot has been running, seconds; None where that is unknown."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else time.clock_gettime(clock)
