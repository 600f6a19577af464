"""A scenario in one picture, drawn without a display: who is there, what changes, what is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fleet.continual.timeline import Change, Timeline
from fleet.files import atomic_path
from simulations.scenario_cells import (
    CLASSES,
    PLAIN,
    SHIFTS,
    Board,
    Handles,
    board_of,
    cells_of,
    class_legend,
)

__all__ = ["plot_scenario"]

OFF = "#333333"
DOTS_PER_INCH = 130
# Devices that have a row and a number each.
LARGEST_NAMED = 32
# Inches around and between the axes.
WIDTH, LEFT, RIGHT, BOTTOM, TITLE, GAP = 8.4, 0.75, 2.1, 0.5, 0.35, 0.3
PANEL = 0.95
MARK, FONT = 0.17, 7.5
INCHES_PER_LETTER = 0.066


def plot_scenario(timeline: Timeline, path: Path) -> None:
    """Draw a timeline as a PNG: devices by periods, and below what arrives.

    Of more than 200 devices some are drawn, evenly spaced. A cell has the colours
    of its shifts, darker the larger they are; in a scenario without any those of the classes that
    the device sees. It is dotted where the device cannot take part, and blank where it is absent.

    Raises:
        StorageError: When the file cannot be written.
    """
    board = board_of(timeline)
    marks = _marks(timeline.changes(), board.periods)
    rows = 1 + max((row for row, _ in marks), default=-1)
    panels = _panels(board)
    heights = [min(max(0.21 * len(board.devices), 1.6), 4.6), *[PANEL] * len(panels)]
    above = TITLE + MARK * rows + 0.05
    height = above + sum(heights) + GAP * len(panels) + BOTTOM
    figure = Figure(figsize=(WIDTH, height))
    top = height - above
    for number, size in enumerate(heights):
        box = (
            LEFT / WIDTH,
            (top - size) / height,
            (WIDTH - LEFT - RIGHT) / WIDTH,
            size / height,
        )
        axes = figure.add_axes(box)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(-0.5, board.periods - 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
        for period in sorted({change.period for _, change in marks}):
            axes.axvline(period - 0.5, color=OFF, linewidth=0.7, linestyle=(0, (3, 2)), zorder=3)
        if number:
            panels[number - 1](axes)
        else:
            _map(axes, board)
            _write_marks(axes, marks, size)
        axes.tick_params(labelsize=FONT, labelbottom=number == len(panels))
        top -= size + GAP
    figure.axes[-1].set_xlabel(_period_text(timeline), fontsize=9)
    figure.text(LEFT / WIDTH, 1 - 0.22 / height, timeline.scenario.name, fontsize=11, weight="bold")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)


def _map(axes: Axes, board: Board) -> None:
    cells, legend = cells_of(board)
    stripes = 24 if board.periods <= LARGEST_NAMED else 6
    picture = np.ones((len(board.devices), board.periods, stripes, 3))
    for row, column in np.argwhere(board.present):
        colours, weights = cells(row, column)
        ends = np.cumsum(weights) / np.sum(weights)
        place = np.searchsorted(ends, (np.arange(stripes) + 0.5) / stripes)
        picture[row, column] = np.array(colours)[np.minimum(place, len(colours) - 1)]
    extent = (-0.5, board.periods - 0.5, len(board.devices) - 0.5, -0.5)
    flat = picture.reshape(len(board.devices), -1, 3)
    axes.imshow(flat, aspect="auto", interpolation="nearest", extent=extent)
    _grid(axes, board)
    off = np.argwhere(board.present & ~board.online)
    dot = 1.5 if len(board.devices) > LARGEST_NAMED else 9.0
    axes.scatter(off[:, 1], off[:, 0], s=dot, color=OFF, linewidths=0, zorder=4)
    if not board.present.all():
        legend.append(Patch(facecolor="white", edgecolor="#BBBBBB", label="not there"))
    if len(off):
        dots = Line2D([], [], marker="o", linestyle="", color=OFF, markersize=3)
        dots.set_label("cannot take part")
        legend.append(dots)
    _legend_beside(axes, legend, "sensors" if board.groups else "classes")
    axes.set_ylabel("device" if len(board.devices) <= LARGEST_NAMED else "devices", fontsize=9)


def _grid(axes: Axes, board: Board) -> None:
    rows, columns = board.present.shape
    if rows <= LARGEST_NAMED:
        axes.set_yticks(range(rows), [str(device) for device in board.devices])
        axes.hlines(np.arange(rows - 1) + 0.5, -0.5, columns - 0.5, color="white", linewidth=1)
    else:
        axes.set_yticks([])
    if columns <= LARGEST_NAMED:
        axes.vlines(np.arange(columns - 1) + 0.5, -0.5, rows - 0.5, color="white", linewidth=1)


def _panels(board: Board) -> list[_Panel]:
    scenario = board.timeline.scenario
    shifted = bool(board.groups)
    panels: list[_Panel] = [_Mix(board, board.counts.sum(axis=0), "all devices", shifted)]
    if shifted and any(event.kind == "prior" for event in scenario.events):
        whole = int(board.present.sum(axis=1).argmax())
        panels.append(_Mix(board, board.counts[whole], f"device {board.devices[whole]}", False))
    if scenario.label_fraction < 1 or scenario.label_delay:
        panels.append(_Labels(board))
    return panels


@dataclass(frozen=True, eq=False)
class _Mix:
    """Shares of the classes among the windows that arrive, stacked."""

    board: Board
    counts: NDArray[np.int64]  # [p, k]
    title: str
    legend: bool

    def __call__(self, axes: Axes) -> None:
        shares = self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        width = 0.92 if len(shares) <= LARGEST_NAMED else 1.0
        base = np.zeros(len(shares))
        for index in range(shares.shape[1]):
            colour = CLASSES[index % len(CLASSES)]
            axes.bar(range(len(shares)), shares[:, index], width, base, color=colour)
            base = base + shares[:, index]
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 1], ["0", "1"])
        axes.set_ylabel(f"classes,\n{self.title}", fontsize=FONT)
        if self.legend:
            _legend_beside(axes, class_legend(self.board.timeline.labels)[::-1], "")


@dataclass(frozen=True, eq=False)
class _Labels:
    """Windows that arrive, and labels that become known."""

    board: Board

    def __call__(self, axes: Axes) -> None:
        arriving = self.board.counts.sum(axis=(0, 2))
        axes.bar(range(len(arriving)), arriving, 0.92, color=PLAIN)
        axes.bar(range(len(arriving)), self.board.known, 0.92, color=SHIFTS[0])
        axes.set_ylabel("windows,\nlabels", fontsize=FONT)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
        legend: Handles = [
            Patch(color=PLAIN, label="windows"),
            Patch(color=SHIFTS[0], label="labels known"),
        ]
        _legend_beside(axes, legend, "")


_Panel = _Mix | _Labels


def _marks(changes: Sequence[Change], periods: int) -> list[tuple[int, Change]]:
    """Give every change a row for its text: above all that begin before it ends."""
    per_inch = periods / (WIDTH - LEFT - RIGHT)
    marks: list[tuple[int, Change]] = []
    for change in reversed(changes):
        ends = change.period + (len(change.text) + 2) * INCHES_PER_LETTER * per_inch
        row = 1 + max((row for row, later in marks if later.period < ends), default=-1)
        marks.insert(0, (row, change))
    return marks


def _write_marks(axes: Axes, marks: list[tuple[int, Change]], height: float) -> None:
    for row, change in marks:
        up = (0.07 + MARK * row) / height
        axes.text(
            change.period - 0.5,
            1 + up,
            change.text,
            transform=axes.get_xaxis_transform(),
            fontsize=FONT,
            color=OFF,
        )
        axes.plot(
            [change.period - 0.5] * 2,
            [1, 1 + up],
            transform=axes.get_xaxis_transform(),
            color=OFF,
            linewidth=0.5,
            clip_on=False,
        )


def _legend_beside(axes: Axes, handles: Sequence[Patch | Line2D], title: str) -> None:
    axes.legend(
        handles=list(handles),
        title=title or None,
        title_fontsize=FONT,
        fontsize=FONT - (1.5 if len(handles) > 6 else 0),
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        borderaxespad=0.0,
        labelspacing=0.25,
        handlelength=1.2,
    )


def _period_text(timeline: Timeline) -> str:
    hours = timeline.scenario.period_hours
    return "period (a day each)" if hours == 24 else f"period ({hours:g} hours each)"
