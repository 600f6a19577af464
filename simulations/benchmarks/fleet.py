"""How fast a real fleet goes round: the real server and real device agents, on this machine.

Each point is ``fleet up`` as a command of its own, on one base and little data, so that the service
is measured and not the training. A cycle is what passes from the opening of one round to that of
the next: plans out, updates in, a release made, every device told and heard. Devices share the
machine with the server, so the more there are, the more a cycle is their processes' start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fleet.adapt.base import save_base
from fleet.config import RunConfig
from fleet.errors import RoundError
from fleet.har.population import population_of
from server.prepare import obtain_base
from server.registry import open_registry
from server.registry.records import RoundState
from simulations.bench import Measurement, header
from simulations.benchmarks.fleet_processes import DEVICES, SERVER, Sample, Sampler, cpu_at, peak_of
from simulations.processes import Command, execute

__all__ = ["LEAST_ROUNDS", "Cycle", "Point", "run"]

TIMEOUT_S = 3600.0
RATE = 0.1
LEAST_ROUNDS = 4
"""The first round warms up, and the last has none after it."""


@dataclass(frozen=True)
class Cycle:
    """What passed from the opening of a round to the opening of the next.

    Args:
        opened_s: Seconds since the epoch.
        until_s: When the next one was opened.
        collecting_s: Of these: from its opening to its release.
        bytes_up: Whole messages with updates.
        bytes_down: Whole messages with plans.
    """

    opened_s: float
    until_s: float
    collecting_s: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Point:
    """One fleet.

    Args:
        agents: Devices.
        cycles: How many were measured.
        rounds_per_hour: By the median cycle.
        seconds_per_round: Of a cycle: median, lowest, highest.
        collecting_seconds: Of these: from the opening of a round to its release.
        server_cpu_seconds: Per round and kind of process, the median; ``total`` of all kinds.
        devices_cpu_seconds: Per round, all devices together, the median.
        bytes_up: Whole messages of a round from devices, the median.
        bytes_down: To them.
        server_peak_bytes: Largest resident memory by kind; ``total``: of all at once.
        devices_peak_bytes: Of all devices at once.
        load: The machine's load average over a minute, at the start and at the end.
    """

    agents: int
    cycles: int
    rounds_per_hour: float
    seconds_per_round: Measurement
    collecting_seconds: Measurement
    server_cpu_seconds: Mapping[str, float]
    devices_cpu_seconds: float
    bytes_up: float
    bytes_down: float
    server_peak_bytes: Mapping[str, int]
    devices_peak_bytes: int
    load: tuple[float, float]


def run(
    agents: Sequence[int],
    folder: Path,
    *,
    rounds: int,
    windows: int,
    on_point: Callable[[Point], None],
) -> dict[str, Any]:
    """Measure every size and return the record.

    Args:
        agents: Sizes of fleets.
        folder: Where base, logs and boxes go; sockets lie in it, so its name is short.
        rounds: Rounds of each, :data:`LEAST_ROUNDS` at least.
        windows: Most windows that a device trains on.
        on_point: Told of every point.

    Raises:
        RoundError: ``fleet-failed`` when a command fails.
    """
    base = folder / "base.safetensors"
    config = RunConfig.parse({"data": "synthetic", "base_epochs": 4})
    save_base(obtain_base(config, population_of(config)), base)
    points = []
    for count in agents:
        points.append(_measured(base, count, folder, rounds, windows))
        on_point(points[-1])
    return header() | {
        "work": {"rounds": rounds, "windows": windows, "data": "synthetic", "cores": _cores()},
        "points": [asdict(point) for point in points],
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _measured(base: Path, agents: int, folder: Path, rounds: int, windows: int) -> Point:
    box, log = folder / f"b{agents}", folder / f"{agents}-agents.txt"
    settings: Mapping[str, object] = {
        "devices": agents,
        "data": "synthetic",
        "base": base,
        "rate": RATE,
        "windows-per-device": windows,
        "rounds": rounds,
        "folder": box,
        "format": "json",
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    words = (str(Path(sys.executable).parent / "fleet"), "up", *flags)
    before = os.getloadavg()[0]
    with Sampler(str(box)) as sampler:
        seen = execute(Command(words, {}), folder, log, TIMEOUT_S)
    if seen.code:
        raise RoundError(
            "fleet-failed",
            f"{agents} agents: exit code {seen.code}; see {log}",
            "Run again with --out FOLDER to have logs and boxes where you want them.",
        )
    return point_of(agents, cycles_of(box), sampler.samples, (before, os.getloadavg()[0]))


def cycles_of(box: Path) -> list[Cycle]:
    """Read the cycles of a box from its registry, without the first, which warms up.

    Args:
        box: Its folder.
    """
    with open_registry(box / "server" / "registry.sqlite", clock=lambda: 0.0) as registry:
        rows = [row for row in registry.rounds.all() if row.state is RoundState.released]
    cycles = []
    for row, after in pairwise(rows[1:]):
        assert row.closed is not None
        cycles.append(
            Cycle(
                row.opened.at_s,
                after.opened.at_s,
                row.closed.at_s - row.opened.at_s,
                int(row.traffic.get("wire_bytes_up", 0)),
                int(row.traffic.get("wire_bytes_down", 0)),
            )
        )
    return cycles


def point_of(
    agents: int, cycles: Sequence[Cycle], samples: Sequence[Sample], load: tuple[float, float]
) -> Point:
    """Put together what was seen of one fleet.

    Args:
        agents: Devices.
        cycles: At least one.
        samples: Of its processes, from before the first cycle until after the last.
        load: See :class:`Point`.
    """
    lengths = Measurement.of([cycle.until_s - cycle.opened_s for cycle in cycles])

    def spent(*kinds: str) -> float:
        each = [
            sum(cpu_at(samples, k, c.until_s) - cpu_at(samples, k, c.opened_s) for k in kinds)
            for c in cycles
        ]
        return round(Measurement.of(each).median, 3)

    return Point(
        agents=agents,
        cycles=len(cycles),
        rounds_per_hour=round(3600.0 / lengths.median, 1),
        seconds_per_round=lengths,
        collecting_seconds=Measurement.of([cycle.collecting_s for cycle in cycles]),
        server_cpu_seconds={kind: spent(kind) for kind in SERVER} | {"total": spent(*SERVER)},
        devices_cpu_seconds=spent(DEVICES),
        bytes_up=Measurement.of([cycle.bytes_up for cycle in cycles]).median,
        bytes_down=Measurement.of([cycle.bytes_down for cycle in cycles]).median,
        server_peak_bytes={kind: peak_of(samples, kind) for kind in SERVER}
        | {"total": peak_of(samples, *SERVER)},
        devices_peak_bytes=peak_of(samples, DEVICES),
        load=(round(load[0], 2), round(load[1], 2)),
    )
