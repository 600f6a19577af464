"""How often drift detectors alarm where nothing has changed, and how soon where something has.

Each detector and parameter is one point of a frontier: false alarms per 10,000 stable windows
against the median of the windows between a change and the first alarm after it; a change that is
not seen within the stream counts as later than any that is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.continual.drift import Detector, LabelFreeDrift, LossDrift, restore
from fleet.seeds import generator
from simulations.bench import header
from simulations.benchmarks.drift_streams import CHANGES, Seen, World, drawn, worlds

__all__ = ["MOST_DELAY", "MOST_FALSE_ALARMS", "Contender", "contenders", "draw_drift", "run"]

MOST_FALSE_ALARMS = 1.0
MOST_DELAY = 200.0
HABIT_WINDOWS = 500
BEFORE = 1000
AFTER = 1000

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Contender:
    """A detector, its parameter, and what it is shown.

    Args:
        name: What is watched, and how.
        parameter: ADWIN's delta, or the limit of a sum.
        make: A new detector.
        show: Its values of what a device has seen.
    """

    name: str
    parameter: float
    make: Callable[[], Detector]
    show: Callable[[Seen], Values]


@dataclass
class _Tally:
    windows: dict[str, int] = field(default_factory=lambda: {"steady": 0, "habits": 0})
    alarms: dict[str, int] = field(default_factory=lambda: {"steady": 0, "habits": 0})
    delays: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in CHANGES})


def contenders() -> Iterator[Contender]:
    """Yield all that is measured: plain ADWIN first, then by class."""
    plain: dict[str, Callable[[Seen], Values]] = {
        "errors (labels), ADWIN": lambda seen: seen.labelled[:, 1],
        "confidence, ADWIN": lambda seen: seen.plain[:, 0],
        "distance, ADWIN": lambda seen: np.log(seen.plain[:, 1] + 1e-6),
    }
    for name, show in plain.items():
        for delta in (1e-3, 1e-6, 1e-9, 1e-12):
            yield Contender(name, delta, lambda delta=delta: LossDrift(delta), show)  # type: ignore[misc]
    kinds: list[tuple[str, Any, tuple[float, ...], int, Callable[[Seen], Values]]] = [
        ("both by class, CUSUM", "cusum", (6, 8, 10, 12, 16), 2, lambda seen: seen.signals),
        ("both by class, Page-Hinkley", "page-hinkley", (8, 12), 2, lambda seen: seen.signals),
        ("both by class, ADWIN", "adwin", (1e-1, 2e-3), 2, lambda seen: seen.signals),
        ("both not by class, CUSUM", "cusum", (8, 12), 2, _one_class),
        ("distance by class, CUSUM", "cusum", (6, 8, 12), 1, lambda seen: seen.signals[:, :2]),
        ("confidence by class, CUSUM", "cusum", (6, 8), 1, lambda seen: seen.signals[:, ::2]),
        ("errors (labels) by class, CUSUM", "cusum", (8, 12), 1, lambda seen: seen.labelled),
    ]
    for name, test, parameters, columns, show in kinds:
        for limit in parameters:
            yield Contender(
                name,
                limit,
                lambda c=columns, t=test, p=limit: LabelFreeDrift(c, t, p),  # type: ignore[misc]
                show,
            )


def _one_class(seen: Seen) -> Values:
    return np.column_stack([np.zeros(len(seen.signals)), seen.signals[:, 1:]])


def run(
    sets: Sequence[str],
    *,
    seeds: int,
    devices: int,
    windows: int,
    on_world: Callable[[str, int, str], None],
) -> dict[str, Any]:
    """Measure all contenders on all sets.

    Args:
        sets: Data sets by name or path.
        seeds: Divisions of people, bases, shifts and streams.
        devices: Most held-out people of each.
        windows: Of each stable stream; a device has one of steady and one of changing habits.
        on_world: Told set, seed and device before each.

    Returns:
        The record: ``rows`` by set and for ``all``; a median delay is None where more than half
        of the changes were not seen.
    """
    fields = list(contenders())
    tallies = {name: [_Tally() for _ in fields] for name in (*sets, "all")}
    for name in sets:
        for seed in range(seeds):
            for world in worlds(name, seed, devices):
                on_world(name, seed, world.name)
                streams = _streams(world, seed, windows)
                for place, contender in enumerate(fields):
                    both = tallies[name][place], tallies["all"][place]
                    _measure(contender, world, streams, both)
    rows = [
        {"data": name} | _row(contender, tally)
        for name, several in tallies.items()
        for contender, tally in zip(fields, several, strict=True)
    ]
    work = {"sets": list(sets), "seeds": seeds, "devices": devices, "windows": windows}
    return header() | {"work": work, "before": BEFORE, "after": AFTER, "rows": rows}


Streams = Mapping[str, NDArray[np.int64]]


def _streams(world: World, seed: int, windows: int) -> Streams:
    """Draw the rows of a device's streams, the same for all contenders."""
    own, labels = world.bouts, world.stable.labelled[:, 0]

    def draw(name: str, count: int, habit: int = 0) -> NDArray[np.int64]:
        return drawn(own, labels, count, generator(seed, 0, world.name, f"drift/{name}"), habit)

    other = world.changed[CHANGES[-1]].labelled[:, 0]
    rng = generator(seed, 0, world.name, "drift/other")
    return {
        "steady": draw("steady", windows),
        "habits": draw("habits", windows, HABIT_WINDOWS),
        "before": draw("before", BEFORE),
        "after": draw("after", AFTER),
        "other": drawn(world.others_bouts, other, AFTER, rng, 0),
    }


def _measure(
    contender: Contender, world: World, streams: Streams, tallies: Sequence[_Tally]
) -> None:
    shown = contender.show(world.stable)
    for kind in ("steady", "habits"):
        alarms = len(contender.make().update(shown[streams[kind]]))
        for tally in tallies:
            tally.windows[kind] += len(streams[kind])
            tally.alarms[kind] += alarms
    first = contender.make()
    # One alarm before the change makes it no easier to see: the detector has started anew.
    first.update(shown[streams["before"]])
    state = first.state()
    for change, seen in world.changed.items():
        rows = streams["other" if change == CHANGES[-1] else "after"]
        found = restore(state).update(contender.show(seen)[rows])
        for tally in tallies:
            tally.delays[change].append(found[0] + 1.0 if found else math.inf)


def _row(contender: Contender, tally: _Tally) -> dict[str, Any]:
    together = [delay for several in tally.delays.values() for delay in several]
    rates = {kind: tally.alarms[kind] / count * 1e4 for kind, count in tally.windows.items()}
    return {
        "detector": contender.name,
        "parameter": contender.parameter,
        "false_alarms": round(rates["steady"], 2),
        "false_alarms_habits": round(rates["habits"], 2),
        "delay": _finite(median(together)),
        "missed": round(sum(map(math.isinf, together)) / len(together), 3),
        "delays": {change: _finite(median(each)) for change, each in tally.delays.items()},
    }


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


def draw_drift(record: Mapping[str, Any], path: Path) -> None:
    """Draw the frontier of all sets together: false alarms against delay, the target shaded."""
    from simulations.benchmarks.peft.style import FAMILIES, canvas, write

    figure, axes = canvas(9.5, 5.5, "Drift detectors: false alarms against delay")
    axes.axhspan(0, MOST_FALSE_ALARMS, xmax=1, color="#009E73", alpha=0.06, zorder=0)
    axes.axvline(MOST_DELAY, color="#009E73", linestyle="--", linewidth=1)
    axes.axhline(MOST_FALSE_ALARMS, color="#009E73", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1.0)
    rows = [row for row in record["rows"] if row["data"] == "all"]
    looks = [*FAMILIES.values(), *((colour, "*") for colour, _ in FAMILIES.values())]
    for name, (colour, marker) in zip(
        dict.fromkeys(r["detector"] for r in rows), looks, strict=False
    ):
        points = [r for r in rows if r["detector"] == name and r["delay"] is not None]
        line = "--" if "ADWIN" in name and "class" not in name else "-"
        x = [point["delay"] for point in points]
        y = [max(p["false_alarms"], p["false_alarms_habits"]) for p in points]
        axes.plot(x, y, marker=marker, color=colour, linestyle=line, label=name, linewidth=1)
    ticks = [20, 50, 100, 200, 500, 1000]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set_ylim(bottom=-0.05)
    axes.set_xlabel("median delay over all changes, windows")
    axes.set_ylabel("false alarms per 10,000 windows,\nsteady or changing habits, the worse")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    write(figure, path)
