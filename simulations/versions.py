"""What a result was made with: versions and machine, for reports and benchmarks."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["machine", "versions"]

PACKAGES = ("corefleet", "torch", "flwr", "numpy", "scipy", "safetensors", "pydantic")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def machine() -> str:
    """Describe the machine in one line: architecture, cores and processor."""
    processor = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    name = names[0] if names else processor
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {name}"
