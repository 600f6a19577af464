"""How a simulation grows: with the devices that are enrolled, and with those of a round.

Each point is ``fleet simulate`` as a command of its own, on one base, a few rounds long. Enrolled
devices should cost nothing, a cohort's time should be proportional to its devices, and neither
should take memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fleet.adapt.base import save_base
from fleet.config import RunConfig
from fleet.errors import RoundError
from fleet.har.population import population_of
from server.prepare import obtain_base
from simulations.bench import header
from simulations.benchmarks.simulate.outcome import of_run_folder
from simulations.processes import MEMORY, Command, execute

__all__ = ["Point", "draw_growth", "run"]

TIMEOUT_S = 3600.0
RATE = 0.1
# Of every point, so that judging weighs the same in all.
JUDGED_DEVICES = 50


@dataclass(frozen=True)
class Point:
    """One command.

    Args:
        devices: Enrolled devices.
        cohort: Devices of a round.
        seconds: Whole command.
        seconds_per_round: Median of all rounds but the first.
        peak_bytes: Largest sum of PSS over its processes.
    """

    devices: int
    cohort: int
    seconds: float
    seconds_per_round: float
    peak_bytes: int


def run(
    enrolled: Sequence[int],
    cohorts: Sequence[int],
    folder: Path,
    *,
    windows: int,
    rounds: int,
    on_point: Callable[[Point], None],
) -> dict[str, Any]:
    """Measure both axes and return the record.

    Args:
        enrolled: Fleet sizes, each with the smallest cohort.
        cohorts: Devices per round, each with the largest fleet.
        folder: Where base, logs and runs go.
        windows: Most windows that a device trains on.
        rounds: Rounds of each point.
        on_point: Told of every point.

    Raises:
        RoundError: ``growth-failed`` when a command fails.
    """
    base = folder / "base.safetensors"
    config = RunConfig.parse({"data": "synthetic", "base_epochs": 4})
    save_base(obtain_base(config, population_of(config)), base)
    smallest, largest = min(cohorts), max(enrolled)
    sizes = dict.fromkeys([(d, smallest) for d in enrolled] + [(largest, c) for c in cohorts])
    points: dict[tuple[int, int], Point] = {}
    for devices, cohort in sizes:
        words = _words(base, devices, cohort, windows, rounds)
        points[devices, cohort] = _measured(words, devices, cohort, folder)
        on_point(points[devices, cohort])
    return header() | {
        "work": {"windows": windows, "rounds": rounds, "data": "synthetic"},
        "memory": MEMORY,
        "enrolled": [asdict(points[d, smallest]) for d in enrolled],
        "cohorts": [asdict(points[largest, c]) for c in cohorts],
        "seconds_per_device": _slope([points[largest, c] for c in cohorts]),
    }


def _words(base: Path, devices: int, cohort: int, windows: int, rounds: int) -> tuple[str, ...]:
    settings: Mapping[str, object] = {
        "data": "synthetic",
        "base": base,
        "methods": "core",
        "rate": f"core={RATE}",
        "devices": devices,
        "cohort": cohort,
        "windows-per-device": windows,
        "evaluate-devices": JUDGED_DEVICES,
        "evaluate-every": rounds,
        "rounds": rounds,
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return (str(Path(sys.executable).parent / "fleet"), "simulate", *flags)


def _measured(words: tuple[str, ...], devices: int, cohort: int, folder: Path) -> Point:
    out = folder / f"{devices}-devices-{cohort}-a-round"
    log = folder / f"{out.name}.txt"
    command = Command((*words, "--out", str(out)), {})
    seen = execute(command, folder, log, TIMEOUT_S, memory=True)
    if seen.code:
        raise RoundError("growth-failed", f"{out.name}: exit code {seen.code}; see {log}")
    said = of_run_folder(out / "core")
    return Point(devices, cohort, seen.seconds, said.seconds_per_round, seen.peak_bytes)


def _slope(points: Sequence[Point]) -> float:
    """Return seconds per device and round: a line through zero, by least squares of ratios."""
    return float(np.mean([point.seconds_per_round / point.cohort for point in points]))


def draw_growth(record: Mapping[str, Any], path: Path) -> None:
    """Draw both axes: seconds of a round and peak memory."""
    from matplotlib.figure import Figure

    from simulations.benchmarks.peft.style import FAMILIES, plain, write

    figure = Figure(figsize=(9, 6), layout="constrained")
    panels = figure.subplots(2, 2)
    columns = (
        ("enrolled", "devices", f"enrolled devices, {record['enrolled'][0]['cohort']} a round"),
        ("cohorts", "cohort", f"devices a round, {record['cohorts'][0]['devices']:,} enrolled"),
    )
    for column, (side, axis, label) in enumerate(columns):
        points = record[side]
        x = [point[axis] for point in points]
        rows = (("seconds_per_round", 1.0, "seconds a round"), ("peak_bytes", 1e6, "peak MB"))
        for row, (key, unit, title) in enumerate(rows):
            axes = panels[row][column]
            y = [point[key] / unit for point in points]
            axes.plot(x, y, marker="o", color=FAMILIES["core"][0])
            axes.set_xscale("log")
            axes.set_xlabel(label)
            axes.set_ylabel(title)
            if (side, key) == ("cohorts", "seconds_per_round"):
                axes.set_yscale("log")
                line = [record["seconds_per_device"] * each for each in x]
                axes.plot(x, line, color=FAMILIES["other"][0], linestyle="--", label="proportional")
                axes.legend(frameon=False)
            else:
                axes.set_ylim(0, 1.25 * max(y))
            axes.set_xticks(x, [f"{each:,}" for each in x], minor=False)
            axes.minorticks_off()
            plain(axes)
    write(figure, path)
