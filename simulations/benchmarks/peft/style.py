"""How the bench's pictures look: colours, and names beside what they name, clear of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from fleet.files import atomic_path
from simulations.benchmarks.peft.rows import Variant

__all__ = [
    "FAMILIES",
    "beside_points",
    "canvas",
    "down_the_edge",
    "full_line",
    "kind",
    "plain",
    "style",
    "write",
]

DOTS_PER_INCH = 130
# Colours that stay apart for colour-blind readers (Okabe and Ito), and a marker beside each.
FAMILIES = {
    "core": ("#0072B2", "o"),
    "full": ("#D55E00", "s"),
    "head": ("#009E73", "^"),
    "bias": ("#E69F00", "D"),
    "lora": ("#CC79A7", "v"),
    "norm": ("#56B4E9", "P"),
    "other": ("#333333", "X"),
}

Point = tuple[float, float, float, str, str]
FONT = 8
DISTANCES = (7, 13, 20, 28, 38, 50, 64, 80)  # points; near places are tried first
DIRECTIONS = (0, 180, 90, 270, 35, 325, 145, 215)  # degrees


def canvas(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """Return a figure of one panel, sized in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    assert isinstance(axes, Axes)
    axes.set_title(title, fontsize=11)
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """Take the frame away and put a light grid."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def write(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)


def full_line(axes: Axes, f1: float | None) -> None:
    """Draw the score of full fine-tuning across a panel, named at its left."""
    if f1 is None:
        return
    colour = FAMILIES["full"][0]
    axes.axhline(f1, color=colour, linestyle="--", linewidth=1, zorder=1)
    axes.annotate(
        "full fine-tuning",
        (0.01, f1),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        xytext=(0, 3),
        fontsize=FONT,
        color=colour,
        zorder=5,
        bbox={"boxstyle": "square,pad=0", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
    )


def style(variant: Variant) -> tuple[str, str]:
    """Return a variant's colour and marker."""
    return FAMILIES[_family(variant)]


def kind(variant: Variant) -> tuple[str, bool]:
    """Return the family of a method, and whether something is trained beside it."""
    return _family(variant), "+" in variant.method


def beside_points(axes: Axes, points: Sequence[Point]) -> None:
    """Name points, each at the nearest place where its name covers nothing.

    Args:
        axes: Drawn and limited already.
        points: (x, y, length of the bar to each side, name, colour).
    """
    canvas = FigureCanvasAgg(axes.figure)  # type: ignore[arg-type]
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    taken = [_box(axes, point) for point in points]
    taken += [Text.get_window_extent(note, renderer) for note in axes.texts]
    taken += [line.get_window_extent(renderer).padded(1) for line in axes.lines if _flat(line)]
    frame = axes.get_window_extent(renderer)
    # The crowded middle first: lonely points find a place anyway.
    for x, y, _, name, colour in sorted(points, key=lambda p: -_near(axes, p, points)):
        best: tuple[float, Annotation, Bbox] | None = None
        for distance, angle in ((d, a) for d in DISTANCES for a in DIRECTIONS):
            note = _note(axes, (x, y), (distance, angle), name, colour)
            note.update_positions(renderer)
            # The text alone: an annotation's own extent takes in the line to its point.
            box = Text.get_window_extent(note, renderer).padded(1)
            hidden = sum(_shared_area(box, other) for other in taken)
            hidden += box.width * box.height - _shared_area(box, frame)
            if best is None or hidden < best[0]:
                if best is not None:
                    best[1].remove()
                best = hidden, note, box
            else:
                note.remove()
            if hidden == 0:
                break
        assert best is not None
        taken.append(best[2])


def down_the_edge(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Name lines at their right ends, moved apart where these are close.

    Args:
        axes: Drawn and limited already.
        ends: (x, y, name, colour).
    """
    low, high = axes.get_ylim()
    height = axes.figure.get_figheight() * 0.75 * 72  # type: ignore[union-attr]
    gap = (high - low) * FONT * 1.25 / height
    heights: list[float] = []
    ordered = sorted(ends, key=lambda end: end[1])
    for _, y, _, _ in ordered:
        heights.append(y if not heights else max(y, heights[-1] + gap))
    # Down again by half of what the pile grew, so that it stays about its middle.
    excess = max(0.0, (heights[-1] - ordered[-1][1]) / 2) if heights else 0.0
    for (x, y, name, colour), place in zip(ordered, heights, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(1.03, place - excess),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=FONT,
            color=_ink(colour),
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6},
        )


def _ink(colour: str) -> tuple[float, ...]:
    """Return a darker shade: thin letters in light colours are hard to read."""
    return tuple(0.7 * part for part in to_rgb(colour))


def _note(
    axes: Axes, at: tuple[float, float], offset: tuple[float, float], name: str, colour: str
) -> Annotation:
    distance, angle = offset
    across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    far = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 3}
    return axes.annotate(
        name,
        at,
        xytext=(distance * across, distance * up),
        textcoords="offset points",
        ha="left" if across > 0.1 else "right" if across < -0.1 else "center",
        va="bottom" if up > 0.1 else "top" if up < -0.1 else "center",
        fontsize=FONT,
        color=_ink(colour),
        arrowprops=far if distance > DISTANCES[1] else None,
    )


def _box(axes: Axes, point: Point) -> Bbox:
    """Return what a point and its bar cover, in pixels."""
    x, y, bar, _, _ = point
    (left, bottom), (right, top) = axes.transData.transform([(x, y - bar), (x, y + bar)])
    return Bbox.from_extents(left - 5, min(bottom, top - 8), right + 5, max(top, bottom + 8))


def _flat(line: Line2D) -> bool:
    heights = np.asarray(line.get_ydata(), dtype=float)
    return len(heights) == 2 and heights[0] == heights[1]


def _near(axes: Axes, point: Point, points: Sequence[Point]) -> int:
    places = axes.transData.transform([(p[0], p[1]) for p in points])
    own = axes.transData.transform((point[0], point[1]))
    return sum(math.dist(own, place) < 60 for place in places)


def _shared_area(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else float(both.width * both.height)


def _family(variant: Variant) -> str:
    stem = variant.method.split("+")[0]
    if stem in FAMILIES:
        return stem
    if "lora" in stem or stem == "dora":
        return "lora"
    if stem.startswith("core"):
        return "core"
    return "norm" if "bn" in stem else "other"
