"""Plots of a run, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fleet.files import atomic_path

__all__ = ["plot_bytes", "plot_curves", "plot_devices"]

Evaluation = dict[str, Any]

# Colours that stay apart for colour-blind readers (Okabe and Ito).
COLOURS = {
    "core": "#0072B2",
    "full": "#D55E00",
    "head": "#009E73",
    "local": "#CC79A7",
    "bias": "#E69F00",
}
OTHER = "#555555"
DOTS_PER_INCH = 130
# Devices that have a row and a name each; more are drawn side by side, without names.
LARGEST_NAMED = 32
LARGEST_DRAWN = 1000
# Inches around the axes. Working them out from the texts would draw everything twice.
LEFT, RIGHT, BOTTOM, TOP = 0.75, 0.2, 0.55, 0.3
NAMES = 1.15


def plot_curves(methods: Mapping[str, Sequence[Evaluation]], path: Path) -> None:
    """Draw pooled macro-F1 by round, a line per method."""
    figure, axes = _canvas(6.4, 4.0)
    for name, evaluations in methods.items():
        points = [(e["release"], e["macro_f1"]) for e in evaluations if e["macro_f1"] is not None]
        axes.plot(
            [p[0] for p in points],
            [p[1] for p in points],
            # Two points say nothing of the way between them.
            linestyle="-" if len(points) > 2 else (0, (1, 3)),
            marker="o",
            markersize=4,
            color=COLOURS.get(name, OTHER),
            label=name,
        )
    first = next(iter(methods.values()))[0]["macro_f1"]
    if first is not None:
        axes.axhline(first, color="#999999", linestyle=":", linewidth=1)
        axes.annotate(
            "before",
            (axes.get_xlim()[1], first),
            textcoords="offset points",
            xytext=(-4, 4),
            ha="right",
            fontsize=8,
        )
    axes.set_xlabel("round")
    axes.set_ylabel("pooled macro-F1")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    _write(figure, path)


def plot_devices(before: Evaluation, after: Mapping[str, Evaluation], path: Path) -> None:
    """Draw each device's own macro-F1 before and after, devices in order of before.

    Up to :data:`LARGEST_NAMED` devices have a row each, more lie side by side; of more than
    :data:`LARGEST_DRAWN` some are drawn, evenly spaced from worst to best.
    """
    devices = [d for d, e in before["devices"].items() if e["macro_f1"] is not None]
    devices.sort(key=lambda device: before["devices"][device]["macro_f1"])
    if len(devices) > LARGEST_NAMED:
        devices = devices[:: -(-len(devices) // LARGEST_DRAWN)]
        _many_devices(devices, before, after, path)
        return
    figure, axes = _canvas(6.4, max(2.4, 0.3 * len(devices) + 1.2), left=NAMES, top=0.45)
    rows = range(len(devices))
    start = [before["devices"][d]["macro_f1"] for d in devices]
    # Methods stand a little apart within a row, so that equal scores do not hide each other.
    steps = [(i - (len(after) - 1) / 2) * 0.18 for i in range(len(after))]
    for step, (name, evaluation) in zip(steps, after.items(), strict=True):
        end = [evaluation["devices"].get(d, {}).get("macro_f1") for d in devices]
        colour = COLOURS.get(name, OTHER)
        if len(after) == 1:
            moved = [a if b is None else b for a, b in zip(start, end, strict=True)]
            axes.hlines(rows, start, moved, color=colour, alpha=0.35)
        known = [(e, r + step) for e, r in zip(end, rows, strict=True) if e is not None]
        axes.scatter([k[0] for k in known], [k[1] for k in known], s=18, color=colour, label=name)
    axes.scatter(start, rows, s=22, facecolors="none", edgecolors="#333333", label="before")
    axes.set_yticks(list(rows), devices, fontsize=7)
    axes.set_xlabel("macro-F1 on the device's own test windows")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, fontsize=8)
    _write(figure, path)


def _many_devices(
    devices: Sequence[str], before: Evaluation, after: Mapping[str, Evaluation], path: Path
) -> None:
    figure, axes = _canvas(6.4, 4.2, top=0.45)
    ranks = range(len(devices))
    for name, evaluation in after.items():
        end = [evaluation["devices"].get(d, {}).get("macro_f1") for d in devices]
        known = [(r, e) for r, e in zip(ranks, end, strict=True) if e is not None]
        colour = COLOURS.get(name, OTHER)
        axes.scatter(
            [k[0] for k in known], [k[1] for k in known], s=10, alpha=0.7, color=colour, label=name
        )
    start = [before["devices"][d]["macro_f1"] for d in devices]
    axes.plot(ranks, start, color="#333333", linewidth=1.2, label="before")
    axes.set_xlabel("devices, from the worst before to the best")
    axes.set_ylabel("macro-F1 on its own test windows")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, fontsize=8)
    _write(figure, path)


def plot_bytes(methods: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw macro-F1 against bytes sent up per device and round, a point per method."""
    figure, axes = _canvas(5.6, 3.8)
    sending = {n: m for n, m in methods.items() if m["bytes_up"] and m["macro_f1"] is not None}
    for name, summary in sending.items():
        axes.scatter(summary["bytes_up"], summary["macro_f1"], s=60, color=COLOURS.get(name, OTHER))
        axes.annotate(
            f"{name} ({summary['bytes_up']:,} B)",
            (summary["bytes_up"], summary["macro_f1"]),
            textcoords="offset points",
            xytext=(0, 8),
            ha="center",
            fontsize=9,
        )
    axes.set_xscale("log")
    # Powers of ten would be set by a typesetter that takes longer than the picture.
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("bytes up per device and round (packed array)")
    axes.set_ylabel("pooled macro-F1 after the last round")
    axes.margins(x=0.3, y=0.25)
    _write(figure, path)


def _canvas(
    width: float, height: float, *, left: float = LEFT, top: float = TOP
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left=left / width, right=1 - RIGHT / width, bottom=BOTTOM / height, top=1 - top / height
    )
    axes = figure.subplots()
    assert isinstance(axes, Axes)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _write(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
