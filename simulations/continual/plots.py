"""Pictures of a continual run: F1 over time, what was forgotten, and the fleet device by device.

DIR/plots/f1.png                    every strategy, period by period
DIR/plots/forgetting.png            F1 of each class at the end of each task, one or two strategies
DIR/plots/fleet-STRATEGY.png        F1 of each device in each period, and its drift alarms
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fleet.measure.f1 import macro_f1_present
from simulations.benchmarks.peft.style import down_the_edge
from simulations.continual.plot_style import FONT, OFF, Change, line_of, mark, rows_of, write

__all__ = ["plot_f1", "plot_fleet", "plot_forgetting", "write_plots"]

Records = Sequence[Mapping[str, Any]]
Curve = Sequence[float | None]

# Devices that have a row each, and those that are named.
LARGEST_DRAWN, LARGEST_NAMED = 200, 32
# Classes whose scores are written into their cells.
LARGEST_WRITTEN = 24
# Inches.
WIDTH, LEFT, RIGHT, BOTTOM, TITLE = 8.6, 0.75, 1.75, 0.5, 0.4
MARK_ROW, PANEL = 0.17, 3.6
SCORES = "cividis"


def write_plots(
    folder: Path, report: Mapping[str, Any], records: Mapping[str, Records]
) -> list[Path]:
    """Draw all pictures of a run and return their paths.

    Args:
        folder: Of the run; pictures go to its ``plots``.
        report: What ``simulations.continual.report.report_of`` returned.
        records: Records of all periods, by strategy; alarms are drawn where they have ``alarms``.

    Raises:
        StorageError: When a picture cannot be written.
    """
    place, title = folder / "plots", f"{report['scenario']} · {report['data']}"
    curves = {name: row["f1"] for name, row in report["strategies"].items()}
    paths = [place / "f1.png", place / "forgetting.png"]
    plot_f1(curves, report["changes"], title, paths[0])
    learned = [name for name, row in report["strategies"].items() if row["trained_parameters"]]
    shown = learned or list(curves)
    plot_forgetting(report, list(dict.fromkeys([shown[0], shown[-1]])), records, paths[1])
    # Of a fleet that nobody has ever reached there is nothing to draw.
    for name in (name for name in shown if any(each["counts"] for each in records[name])):
        paths.append(place / f"fleet-{name}.png")
        plot_fleet(records[name], report["changes"], f"{title} · {name}", paths[-1])
    return paths


def plot_f1(curves: Mapping[str, Curve], changes: Sequence[Change], title: str, path: Path) -> None:
    """Draw macro-F1 over periods, a line for each strategy.

    Args:
        curves: By strategy: one score per period; None without windows.
        changes: What is marked.
        title: Of the picture.
        path: Where to.

    Raises:
        StorageError: When it cannot be written.
    """
    periods = max(map(len, curves.values()))
    figure, axes = _framed(title, changes, periods, PANEL)
    axes.grid(alpha=0.25)
    ends = []
    for name, curve in curves.items():
        colour, dashes, width = line_of(name)
        y = np.array([np.nan if value is None else value for value in curve], np.float64)
        axes.plot(range(len(y)), y, color=colour, linestyle=dashes, linewidth=width)
        there = np.flatnonzero(~np.isnan(y))
        if len(there):
            ends.append((float(there[-1]), float(y[there[-1]]), name, colour))
    axes.set_ylabel("macro-F1 of what is served", fontsize=9)
    axes.set_xlabel("period", fontsize=9)
    down_the_edge(axes, ends)
    write(figure, path)


def plot_forgetting(
    report: Mapping[str, Any], names: Sequence[str], records: Mapping[str, Records], path: Path
) -> None:
    """Draw F1 of each class at the end of each task, strategies side by side.

    Args:
        report: Of the run.
        names: One or two strategies.
        records: Records of all periods, by strategy.
        path: Where to.

    Raises:
        StorageError: When it cannot be written.
    """
    labels, rows = report["labels"], [report["strategies"][name] for name in names]
    moments = [str(r["period"]) for r in records[names[0]] if "tasks" in r]
    side = max(1.6, 0.52 * len(moments) + 0.6)
    height = max(1.8, 0.27 * len(labels) + 0.2)
    left = 0.35 + 0.075 * max(map(len, labels))
    figure = Figure(figsize=(left + len(names) * (side + 0.15) + 0.9, height + 1.25))
    wide, high = figure.get_size_inches()
    for number, (name, row) in enumerate(zip(names, rows, strict=True)):
        x = left + number * (side + 0.15)
        axes = figure.add_axes((x / wide, 0.55 / high, side / wide, height / high))
        lost = [row["forgetting"].get(label) for label in labels]
        image = _heat(axes, _grid(row["class_f1"]), moments, lost)
        axes.set_yticks(range(len(labels)), [_plain(each) for each in labels] if not number else [])
        axes.set_title(name, fontsize=9)
    bar = figure.add_axes(((wide - 0.75) / wide, 0.55 / high, 0.13 / wide, height / high))
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=FONT)
    title = f"F1 by class, on all tasks so far · {report['scenario']} · {report['data']}"
    figure.text(0.12 / wide, 1 - 0.24 / high, title, fontsize=10, weight="bold")
    middle = (left + len(names) * (side + 0.15) / 2) / wide
    figure.text(middle, 0.12 / high, "at the end of period", fontsize=9, ha="center")
    write(figure, path)


def plot_fleet(records: Records, changes: Sequence[Change], title: str, path: Path) -> None:
    """Draw macro-F1 of what each device serves, devices by periods; blank where it is not there.

    Args:
        records: Of all periods, in order, with a device in one of them at least; ``alarms`` lists
            the devices whose detector raised one.
        changes: What is marked.
        title: Of the picture.
        path: Where to.

    Raises:
        StorageError: When it cannot be written.
    """
    every = sorted({device for record in records for device in record["counts"]})
    devices = every[:: max(1, -(-len(every) // LARGEST_DRAWN))]
    place = {device: row for row, device in enumerate(devices)}
    f1 = np.full((len(devices), len(records)), np.nan)
    alarms = []
    for column, record in enumerate(records):
        for device, table in record["counts"].items():
            counts = np.array(table, np.int64)
            if device in place and counts.sum():
                f1[place[device], column] = macro_f1_present(counts)
        alarms += [(column, place[d]) for d in record.get("alarms", ()) if d in place]
    height = min(max(0.21 * len(devices), 1.6), 4.6)
    figure, axes = _framed(title, changes, len(records), height)
    image = axes.imshow(f1, aspect="auto", interpolation="nearest", cmap=SCORES, vmin=0, vmax=1)
    _name_devices(axes, devices)
    if alarms:
        size = 22.0 if len(devices) <= LARGEST_NAMED else 4.0
        points = np.array(alarms)
        white: dict[str, Any] = {"color": "white", "edgecolors": OFF, "linewidths": 0.6}
        axes.scatter(points[:, 0], points[:, 1], s=size, zorder=4, label="drift alarm", **white)
        outside: dict[str, Any] = {
            "loc": "lower left",
            "bbox_to_anchor": (1.0, 0.0),
            "frameon": False,
        }
        axes.legend(fontsize=FONT, borderaxespad=0.3, handletextpad=0.1, **outside)
    wide, high = figure.get_size_inches()
    box = axes.get_position()
    scale = min(0.65 * box.height, 2.0 / high)
    bar = figure.add_axes(((WIDTH - RIGHT + 0.15) / wide, box.y1 - scale, 0.13 / wide, scale))
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=FONT)
    bar.set_ylabel("macro-F1", fontsize=FONT)
    axes.set_xlabel("period", fontsize=9)
    write(figure, path)


def _framed(
    title: str, changes: Sequence[Change], periods: int, height: float
) -> tuple[Figure, Axes]:
    """Return a figure of one panel over periods, with its changes marked."""
    width = WIDTH - LEFT - RIGHT
    marks = rows_of(changes, periods, width)
    above = TITLE + MARK_ROW * (1 + max((row for row, _ in marks), default=-1)) + 0.05
    whole = above + height + BOTTOM
    figure = Figure(figsize=(WIDTH, whole))
    axes = figure.add_axes((LEFT / WIDTH, BOTTOM / whole, width / WIDTH, height / whole))
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(-0.5, periods - 0.5)
    mark(axes, marks, height)
    figure.text(LEFT / WIDTH, 1 - 0.25 / whole, title, fontsize=11, weight="bold")
    return figure, axes


def _heat(
    axes: Axes, f1: NDArray[np.float64], moments: Sequence[str], lost: Sequence[float | None]
) -> Any:
    """Draw classes by moments, and at the right by how much each class was better before."""
    image = axes.imshow(f1, aspect="auto", interpolation="nearest", cmap=SCORES, vmin=0, vmax=1)
    axes.set_xlim(-0.5, len(moments) + 0.35)
    axes.set_xticks([*range(len(moments)), len(moments)], [*moments, "lost"], fontsize=FONT)
    axes.tick_params(labelsize=FONT, length=0)
    axes.spines[:].set_visible(False)
    if len(f1) > LARGEST_WRITTEN:
        return image
    centred: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": FONT}
    for row, column in np.argwhere(~np.isnan(f1)):
        value = f1[row, column]
        colour = "white" if value < 0.55 else "black"
        axes.text(column, row, f"{100 * value:.0f}", color=colour, **centred)
    for row, value in enumerate(lost):
        if value is not None:
            text = f"{100 * value:+.0f}"
            bold = "bold" if value >= 0.03 else "normal"
            axes.text(len(moments), row, text, color=OFF, weight=bold, **centred)
    return image


def _grid(lines: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    """Return F1 by class and moment, float64 ``[classes, moments]``."""
    values = [[np.nan if value is None else value for value in line] for line in lines]
    return np.array(values, np.float64).T


def _name_devices(axes: Axes, devices: Sequence[str]) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if len(devices) <= LARGEST_NAMED:
        axes.set_yticks(range(len(devices)), [_number(device) for device in devices])
        axes.hlines(np.arange(len(devices) - 1) + 0.5, *axes.get_xlim(), color="white", linewidth=1)
    axes.tick_params(labelsize=FONT)
    axes.set_ylabel("device", fontsize=9)


def _number(device: str) -> str:
    """Return a device's number, or its name where it has none."""
    number = device.rpartition("-")[2]
    return str(int(number)) if number.isdigit() else device


def _plain(label: str) -> str:
    return label.lower().replace("_", " ")
