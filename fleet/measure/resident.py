"""Resident memory of this process, and the allocator settings that keep it near what is used.

The kernel's own counters: ``VmRSS`` is what is resident now, ``VmHWM`` the most since the process
began or since ``5`` was written to ``/proc/self/clear_refs``. ``getrusage``'s ``ru_maxrss`` cannot
be reset and starts at the parent's size, so it would hide everything below an import's peak.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from fleet.errors import UnavailableError

__all__ = ["ALLOCATOR_ENVIRONMENT", "peak_bytes", "require_linux", "reset_peak"]

# For glibc, read once when a process starts. The thresholds are glibc's own first values, but
# given they stay: else each large block that is freed raises them (up to 32 MiB), later blocks come
# from the heap, and a step's freed memory is never handed back.
ALLOCATOR_ENVIRONMENT: Mapping[str, str] = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def require_linux() -> None:
    """Refuse where the kernel has no such counters.

    Raises:
        UnavailableError: ``resident-unmeasurable`` anywhere but on Linux with ``/proc``.
    """
    if not sys.platform.startswith("linux") or not _STATUS.exists():
        raise UnavailableError(
            "resident-unmeasurable",
            f"resident memory is read from Linux's /proc, which {sys.platform} does not have here",
            "Leave --resident out; allocated bytes are measured everywhere.",
        )


def reset_peak() -> int:
    """Start the peak anew from what is resident now; return that, in bytes.

    Raises:
        UnavailableError: ``resident-unmeasurable`` where the counters are missing or locked.
    """
    require_linux()
    try:
        _CLEAR.write_text("5")
    except OSError as error:
        raise UnavailableError(
            "resident-unmeasurable",
            f"this process may not reset its peak of resident memory: {error}",
            "Run it outside of the sandbox, or leave --resident out.",
        ) from error
    return _read("VmRSS")


def peak_bytes() -> int:
    """Return the most that was resident since :func:`reset_peak`, in bytes."""
    require_linux()
    return _read("VmHWM")


def _read(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024  # the kernel says kB and means KiB
    raise UnavailableError(
        "resident-unmeasurable", f"{_STATUS} has no {name} on this kernel", "Leave --resident out."
    )
