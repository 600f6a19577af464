"""The table of a round's phases, and its picture: ``python -m server.phases FILE.png``.

What :func:`server.coordinator.step` does is found by trying (``tests/server/test_phases.py``) and
is exactly :data:`ARROWS`; docs/service.md holds the table, docs/images/round.png the picture.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from fleet.files import atomic_path
from server.events import (
    Answered,
    Event,
    Failed,
    Fleet,
    Late,
    Phase,
    Published,
    Pushed,
    Tick,
)

__all__ = ["ARROWS", "SOURCE", "Arrow", "draw_phases", "phase_table"]

SOURCE = "Source"
"""Keyword of the picture under which it carries the table that it was drawn from."""


@dataclass(frozen=True)
class Arrow:
    """One way from a phase to another.

    Args:
        start: Where the round stands.
        events: What may happen; any of them.
        when: Under which condition, in words.
        end: Where it stands then.
        outcome: What the round's record says of it: ``released``, ``abandoned`` or nothing.
        then: Why it goes on so after its outcome.
    """

    start: Phase
    events: tuple[type[Event], ...]
    when: str
    end: Phase
    outcome: str = ""
    then: str = ""


# All that is left open, at its deadline at the latest, or enough of it.
CLOSING = (Answered, Failed, Late, Tick)
CLOSED = "all answered, the deadline, or as many as over-selection wants"
TOO_FEW = "the same, but too few updates for quorum or rule"

ARROWS = (
    Arrow(Phase.idle, (Fleet,), "enough devices", Phase.planned),
    Arrow(Phase.idle, (Fleet,), "too few devices, and the wait is over", Phase.ended),
    Arrow(Phase.planned, (Pushed,), "the plan is on its way", Phase.collecting),
    Arrow(Phase.collecting, CLOSING, CLOSED, Phase.aggregating),
    Arrow(Phase.collecting, CLOSING, TOO_FEW, Phase.idle, "abandoned", "the same round again"),
    Arrow(
        *(Phase.collecting, CLOSING, TOO_FEW, Phase.ended, "abandoned"),
        "the third time in a row",
    ),
    Arrow(
        *(Phase.aggregating, (Published,), "the release is durable", Phase.idle, "released"),
        "the next round",
    ),
    Arrow(
        *(Phase.aggregating, (Published,), "the release is durable", Phase.ended, "released"),
        "it was the last round",
    ),
)

# Centres of the boxes, in units of a box's height.
PLACES: Mapping[str, tuple[float, float]] = {
    "idle": (0.0, 4.0),
    "planned": (4.4, 4.0),
    "collecting": (8.8, 4.0),
    "aggregating": (13.2, 4.0),
    "released": (17.6, 4.0),
    "abandoned": (8.8, 1.8),
    "ended": (8.8, -0.6),
}
# Colours that stay apart for colour-blind readers (Okabe and Ito).
COLOURS = {"released": "#009E73", "abandoned": "#D55E00", "ended": "#555555"}
PHASE = "#0072B2"
LINE = "#333333"
# What stands on an arrow, short; the whole is in the table below the picture.
SHORT = {
    CLOSED: "all answered,\nor deadline",
    TOO_FEW: "too few\nupdates",
    "too few devices, and the wait is over": "too few devices,\nthe wait is over",
    "the plan is on its way": "plan\npushed",
    "the release is durable": "release\ndurable",
    "enough devices": "enough\ndevices",
    "the third time in a row": "third time\nin a row",
    "it was the last round": "after the\nlast round",
}
DOTS_PER_INCH = 130


def phase_table() -> str:
    """Return all arrows as a table in Markdown."""
    rows = ["| phase | event | when | next | recorded |", "|---|---|---|---|---|"]
    for arrow in ARROWS:
        events = ", ".join(f"`{event.__name__}`" for event in arrow.events)
        then = f": {arrow.then}" if arrow.then else ""
        recorded = f"{arrow.outcome}{then}"
        cells = (arrow.start.value, events, arrow.when, arrow.end.value, recorded)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def draw_phases(path: Path) -> None:
    """Draw all arrows as a picture (PNG), which carries :func:`phase_table` as its source.

    Args:
        path: Where it goes.

    Raises:
        StorageError: When it cannot be written.
    """
    figure = Figure(figsize=(8.6, 4.0))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(-1.9, 19.5)
    axes.set_ylim(-1.3, 8.0)
    for name in sorted(PLACES):
        _box(axes, name)
    for start, end, text in _ways():
        _way(axes, start, end, SHORT.get(text, text))
    with atomic_path(path) as temporary:
        metadata = {SOURCE: phase_table(), "Software": None}
        figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata=metadata)


def _ways() -> list[tuple[str, str, str]]:
    """Return the lines of the picture: an outcome is a box between two phases."""
    ways: dict[tuple[str, str, str], None] = {}
    for arrow in ARROWS:
        start, end = arrow.start.value, arrow.end.value
        if arrow.outcome:
            ways[(start, arrow.outcome, arrow.when)] = None
            ways[(arrow.outcome, end, arrow.then)] = None
        else:
            ways[(start, end, arrow.when)] = None
    return list(ways)


def _box(axes: Axes, name: str) -> None:
    colour = COLOURS.get(name, PHASE)
    style = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": colour}
    axes.text(
        *PLACES[name],
        name,
        ha="center",
        va="center",
        fontsize=9,
        color=colour,
        bbox={**style, "linewidth": 1.6},
        zorder=3,
    )


def _way(axes: Axes, start: str, end: str, text: str) -> None:
    (x, y), (to_x, to_y) = PLACES[start], PLACES[end]
    # Between the ends of the row only a bow has room.
    bow = 0.38 if abs(to_x - x) > 10 and y == to_y else 0.0
    axes.add_patch(
        FancyArrowPatch(
            (x, y),
            (to_x, to_y),
            connectionstyle=f"arc3,rad={bow}",
            arrowstyle="-|>",
            mutation_scale=11,
            linewidth=1.1,
            color=LINE,
            shrinkA=27 if y == to_y and not bow else 16,
            shrinkB=30 if y == to_y and not bow else 18,
            zorder=1,
        )
    )
    middle_y = (y + to_y) / 2 + bow * abs(to_x - x) / 2
    axes.text(
        (x + to_x) / 2,
        middle_y + (0.72 if y == to_y and not bow else 0.0),
        text,
        ha="center",
        va="center",
        fontsize=7.5,
        color=LINE,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        zorder=2,
    )


if __name__ == "__main__":
    draw_phases(Path(sys.argv[1]))
