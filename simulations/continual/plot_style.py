"""How pictures of continual runs look: a strategy's line, and the marks of what changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fleet.files import atomic_path

__all__ = ["FONT", "OFF", "Change", "dashed", "line_of", "mark", "rows_of", "short", "write"]

Change = Mapping[str, Any]
"""``period`` and ``text``, as in a report."""

OFF = "#333333"
FONT = 7.5
DOTS_PER_INCH = 130
# Inches of a mark's row, and of a letter.
MARK, INCHES_PER_LETTER = 0.17, 0.066
LONGEST_TEXT = 46

# Okabe and Ito's colours, as in the other pictures; ours in blues, what is light to send in solid.
LINES: dict[str, tuple[str, Any, float]] = {
    "frozen": ("#888888", (0, (1, 1.5)), 1.4),
    "local-full": ("#333333", (0, (5, 1.5, 1, 1.5)), 1.2),
    "fedavg-full": ("#D55E00", (0, (4, 1.5)), 1.4),
    "fedprox-full": ("#E69F00", (0, (4, 1.5)), 1.4),
    "fedavg-head": ("#009E73", "-", 1.4),
    "fedit-lora": ("#CC79A7", "-", 1.4),
    "ffa-lora": ("#8E5C80", "-", 1.4),
    "core": ("#56B4E9", "-", 1.8),
    "core+replay": ("#0072B2", "-", 1.8),
    "core+replay+personal": ("#003F73", "-", 2.2),
    "core+all": ("#5B4FCF", "-", 2.2),
    "core-joint": ("#0072B2", (0, (1, 1)), 1.2),
}
OTHER = ("#777777", "-", 1.2)


def line_of(name: str) -> tuple[str, Any, float]:
    """Return a strategy's colour, dashes and width in points."""
    return LINES.get(name, OTHER)


def rows_of(changes: Sequence[Change], periods: int, width: float) -> list[tuple[int, Change]]:
    """Give every change a row for its text: above all that begin before it ends.

    Args:
        changes: In the order of their periods.
        periods: How many the axis shows.
        width: Of the axis, in inches.
    """
    per_inch = periods / width
    marks: list[tuple[int, Change]] = []
    for change in reversed(list(changes)):
        ends = change["period"] + (len(short(change["text"])) + 2) * INCHES_PER_LETTER * per_inch
        row = 1 + max((row for row, later in marks if later["period"] < ends), default=-1)
        marks.insert(0, (row, change))
    return marks


def mark(axes: Axes, marks: Sequence[tuple[int, Change]], height: float) -> None:
    """Draw changes as dashed lines, and their texts above an axis of so many inches."""
    dashed(axes, [change for _, change in marks])
    across = axes.get_xaxis_transform()
    for row, change in marks:
        up, at = (0.05 + MARK * row) / height, change["period"] - 0.5
        text = f" {short(change['text'])}"
        axes.text(at, 1 + up, text, transform=across, fontsize=FONT, color=OFF)
        stem: dict[str, Any] = {
            "color": OFF,
            "linewidth": 0.5,
            "clip_on": False,
            "transform": across,
        }
        axes.plot([at] * 2, [1, 1 + up + 0.1 / height], **stem)


def dashed(axes: Axes, changes: Sequence[Change]) -> None:
    """Draw changes as dashed lines alone; the axis counts periods in whole numbers."""
    for period in sorted({change["period"] for change in changes}):
        axes.axvline(period - 0.5, color=OFF, linewidth=0.7, linestyle=(0, (3, 2)), zorder=3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    axes.tick_params(labelsize=FONT)


def short(text: str) -> str:
    """Return a text that fits above an axis.

    >>> short("new: SITTING, STANDING")
    'new: SITTING, STANDING'
    """
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"


def write(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all.

    Raises:
        StorageError: When it cannot be written.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH)
