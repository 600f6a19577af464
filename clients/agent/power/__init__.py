"""Temperature, battery, supply, load and power of the device, from whatever it has.

Sources are asked in an order: jtop and tegrastats know a Jetson best, sysfs knows any Linux,
psutil the rest. Each is a function that takes its file system or command runner, so that tests
give it recorded ones.
"""

from __future__ import annotations

from pathlib import Path

from clients.agent.power import jetson, linux
from clients.agent.power.commands import LineOf, first_line
from clients.agent.power.portable import portable
from clients.agent.power.readings import Readings, Source, combined

__all__ = ["Readings", "Source", "combined", "read_device", "sources_of"]

SYS = Path("/sys")


def sources_of(root: Path = SYS, line_of: LineOf = first_line) -> list[tuple[str, Source]]:
    """Return the sources of a device, best first.

    Args:
        root: Where sysfs is mounted.
        line_of: Runs a command for its first line.
    """
    return [
        ("jtop", jetson.jtop),
        ("tegrastats", lambda: jetson.tegrastats(line_of)),
        ("thermal-zones", lambda: linux.thermal_zones(root)),
        ("power-supply", lambda: linux.power_supplies(root)),
        ("networkmanager", lambda: linux.network(line_of)),
        ("psutil", portable),
    ]


def read_device() -> Readings:
    """Read this machine's sensors; takes at most the sum of the sources' limits (about 10 s)."""
    return combined(sources_of())
