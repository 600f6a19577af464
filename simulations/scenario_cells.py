"""What the picture of a scenario shows: cells of devices by periods, and their colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from fleet.continual.timeline import Timeline

__all__ = ["CLASSES", "PLAIN", "SHIFTS", "Board", "Handles", "board_of", "cells_of", "class_legend"]

# Colours that stay apart for colour-blind readers (Okabe and Ito), as in server/plots.py.
SHIFTS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
# Tol's light colours and three more: classes look unlike shifts.
CLASSES = (
    *("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99"),
    *("#BBCC33", "#AAAA00", "#8878B0", "#C79A6B", "#6F7F8F", "#BFBFBF"),
)
PLAIN = "#E6E6E6"

# More devices are thinned out.
LARGEST_DRAWN = 200

Colour = tuple[float, float, float]
Cells = Callable[[int, int], tuple[list[Colour], list[float]]]
Handles = list[Patch | Line2D]


@dataclass(frozen=True, eq=False)
class Board:
    """What is drawn: ``d`` devices, ``p`` periods, ``k`` classes."""

    timeline: Timeline
    devices: tuple[int, ...]
    present: NDArray[np.bool_]  # [d, p]
    online: NDArray[np.bool_]  # [d, p]
    shifts: tuple[tuple[str, ...], ...]  # [d][p]
    counts: NDArray[np.int64]  # [d, p, k]
    known: NDArray[np.int64]  # [p], labels that a period's round may use for the first time

    @property
    def periods(self) -> int:
        """Periods of the scenario."""
        return self.timeline.scenario.periods

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Kinds of shifts, those together that come together."""
        groups: list[tuple[str, ...]] = []
        for event in self.timeline.scenario.events:
            if event.kind == "shift":
                kinds = tuple(kind for kind, _ in event.pieces)
                meeting = [group for group in groups if set(group) & set(kinds)]
                groups = [group for group in groups if group not in meeting]
                groups.append(tuple(dict.fromkeys([k for g in (*meeting, kinds) for k in g])))
        return groups


def board_of(timeline: Timeline) -> Board:
    """Ask a timeline for all that is drawn; of a large fleet evenly spaced devices."""
    drawn = list(range(len(timeline)))[:: -(-len(timeline) // LARGEST_DRAWN)]
    periods = range(timeline.scenario.periods)
    known = np.zeros(len(periods), np.int64)
    for device in drawn:
        for period in periods:
            when = timeline.known_at(device, period)
            known += np.bincount(when[when < len(periods)], minlength=len(periods))

    def story(device: int) -> tuple[int, ...]:
        """Sort who is there longest first, and who is shifted first among those."""
        there = [timeline.present(device, p) for p in periods]
        shifted = [timeline.shift_at(device, p) != "none" for p in periods]
        return there.index(True) if any(there) else len(periods), -sum(there), -sum(shifted), device

    devices = tuple(sorted(drawn, key=story))
    return Board(
        timeline,
        devices,
        np.array([[timeline.present(d, p) for p in periods] for d in devices]),
        np.array([[timeline.online(d, p) for p in periods] for d in devices]),
        tuple(tuple(timeline.shift_at(d, p) for p in periods) for d in devices),
        np.array([[timeline.counts(d, p) for p in periods] for d in devices]),
        known,
    )


def cells_of(board: Board) -> tuple[Cells, Handles]:
    """Return what colours a cell, and the legend: shifts, or classes where there are no shifts."""
    return _shift_cells(board) if board.groups else _class_cells(board)


def _shift_cells(board: Board) -> tuple[Cells, Handles]:
    """Colour cells by the shifts that are there, side by side, darker the larger they are."""
    sizes = [[_sizes(text) for text in row] for row in board.shifts]
    every = [cell for row in sizes for cell in row]
    largest = {k: max(cell.get(k, 0.0) for cell in every) for group in board.groups for k in group}
    shown = [group for group in board.groups if any(largest[kind] for kind in group)]
    colours = {group: SHIFTS[i % len(SHIFTS)] for i, group in enumerate(shown)}

    def cell(row: int, column: int) -> tuple[list[Colour], list[float]]:
        held = sizes[row][column]
        mixed = []
        for group, colour in colours.items():
            share = max(held.get(k, 0.0) / largest[k] for k in group if largest[k])
            if share:
                mixed.append(_lighter(colour, 0.25 + 0.75 * share))
        mixed = mixed or [to_rgb(PLAIN)]
        return mixed, [1.0] * len(mixed)

    legend: Handles = [Patch(color=PLAIN, label="as the base knows them")]
    for group, colour in colours.items():
        first = group[0]
        one = len({held[first] for held in every if first in held}) == 1
        text = "\n+ ".join(f"{k}:{largest[k]:g}" for k in group if largest[k])
        legend.append(Patch(color=colour, label=text if one else f"up to {text}"))
    return cell, legend


def _class_cells(board: Board) -> tuple[Cells, Handles]:
    """Colour cells by the classes that the device sees, each as wide as its share."""
    labels = board.timeline.labels
    colours = [to_rgb(CLASSES[i % len(CLASSES)]) for i in range(len(labels))]

    def cell(row: int, column: int) -> tuple[list[Colour], list[float]]:
        counts = board.counts[row, column].tolist()
        return (colours, counts) if sum(counts) else ([to_rgb(PLAIN)], [1.0])

    return cell, class_legend(labels)


def class_legend(labels: Sequence[str]) -> Handles:
    """Return the colours of the classes."""
    return [
        Patch(color=CLASSES[i % len(CLASSES)], label=label.lower().replace("_", " "))
        for i, label in enumerate(labels)
    ]


def _sizes(text: str) -> dict[str, float]:
    parts = () if text == "none" else (one.split(":") for one in text.split("+"))
    return {kind: float(size) for kind, size in parts}


def _lighter(colour: str, strength: float) -> Colour:
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return red, green, blue
