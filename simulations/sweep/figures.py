"""Pictures of a report, as SVG text: each with the words that stand for it where it is not seen."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from simulations.benchmarks.peft.style import beside_points, canvas, plain
from simulations.sweep.findings import Entry, Findings, Group, label
from simulations.sweep.recipe import Scalar

__all__ = ["Picture", "draw"]

# Colours that stay apart for colour-blind readers (Okabe and Ito), for values without an order.
NAMED = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333", "#999999")
LARGEST_BARS = 40
LARGEST_NAMED = 10
LONGEST_NAME = 36
Way = list[tuple[int, float]]


@dataclass(frozen=True)
class Picture:
    """A picture of a report.

    Args:
        name: Short and stable.
        title: Heading.
        svg: The picture.
        words: What it shows, in words.
    """

    name: str
    title: str
    svg: str
    words: str


def draw(findings: Findings) -> list[Picture]:
    """Draw what there is to draw: curves by axis value, F1 against bytes, final bars."""
    groups = [group for group in findings.groups() if group.mean is not None]
    if not groups:
        return []
    found = [_curves(findings)] if any(_way(e) for e in findings.entries) else []
    if any(_bytes_of(group) for group in groups):
        found.append(_against_bytes(findings, groups))
    return [*found, _bars(findings, groups)]


def _curves(findings: Findings) -> Picture:
    """Draw macro-F1 by round, a panel per axis: thin lines are cells, thick ones means."""
    axes_named = findings.axes or ("seed",)
    columns = min(2, len(axes_named))
    lines = -(-len(axes_named) // columns)
    figure = Figure(figsize=(5.4 * columns, 3.7 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, sharey=True, squeeze=False)
    for axes, axis in zip(panels.flat, axes_named, strict=False):
        _panel(axes, findings, axis)
    for axes in panels.flat[len(axes_named) :]:
        axes.set_visible(False)
    for row in panels:
        row[0].set_ylabel("pooled macro-F1")
    words = "; ".join(_curves_in_words(findings, axis) for axis in axes_named)
    return Picture(
        "rounds",
        "macro-F1 over the rounds, by the value of each axis",
        _svg(figure),
        f"Pooled macro-F1 by round. Thin lines: cells; thick lines: means of all cells with a "
        f"value, over all other axes and seeds. Last means: {words}.",
    )


def _panel(axes: Axes, findings: Findings, axis: str) -> None:
    plain(axes)
    members = _by_value(findings.entries, axis)
    faint = min(0.3, max(0.05, 8 / len(findings.entries)))
    for colour, (value, entries) in zip(_colours(list(members)), members.items(), strict=True):
        ways = [way for way in map(_way, entries) if way]
        for way in ways if len(ways) > 1 else ():
            axes.plot(*zip(*way, strict=True), color=colour, alpha=faint, linewidth=0.8, zorder=1)
        mean = _mean_way(ways)
        if mean:
            # Two points say nothing of the way between them.
            style = "-" if len(mean) > 2 else (0, (1, 3))
            name = label({axis: value}).partition(" ")[2]
            axes.plot(
                *zip(*mean, strict=True),
                color=colour,
                linewidth=2.2,
                linestyle=style,
                marker="o",
                markersize=3.5 if len(mean) < 25 else 0,
                label=name,
                path_effects=[Stroke(linewidth=3.8, foreground="white"), Normal()],
                zorder=3,
            )
    axes.set_title(axis, fontsize=11)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8, ncols=1 + len(members) // 6, loc="best")


def _curves_in_words(findings: Findings, axis: str) -> str:
    shown = []
    for value, entries in _by_value(findings.entries, axis).items():
        mean = _mean_way([way for way in map(_way, entries) if way])
        if mean:
            shown.append(f"{label({axis: value})} {mean[-1][1]:.3f}")
    return ", ".join(shown)


def _against_bytes(findings: Findings, groups: Sequence[Group]) -> Picture:
    """Draw final macro-F1 against the bytes of the whole run; the front is joined by a line."""
    sending = [group for group in groups if _bytes_of(group)]
    front = _front(sending)
    crowded = len(sending) > LARGEST_NAMED
    figure, axes = canvas(8.4, 4.8, "")
    ink = _Ink(findings)
    if len(front) > 1:
        line = [(_bytes_of(group), group.mean or 0.0) for group in front]
        axes.plot(*zip(*line, strict=True), color="#888888", linewidth=0.9, zorder=1)
    points = []
    for group in sending:
        x, y, colour = _bytes_of(group), group.mean or 0.0, ink.of(group)
        if crowded and group not in front:
            axes.plot(x, y, "o", markersize=4, color=colour, alpha=0.3)
            continue
        spread = group.spread or 0.0
        axes.errorbar(
            x, y, yerr=spread, fmt="o", markersize=6, color=colour, elinewidth=1, capsize=4
        )
        points.append((x, y, spread, _name(findings, group), colour))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(EngFormatter("B") if _narrow(sending) else NullFormatter())
    axes.margins(x=0.18, y=0.16)
    axes.set_xlabel("all bytes on the wire, both ways, whole fleet and run (log scale)")
    axes.set_ylabel("final pooled macro-F1")
    if crowded:
        ink.explain(axes)
    beside_points(axes, points)
    of_front = ", ".join(f"{g.label}: {g.mean:.3f} for {_bytes_of(g):,.0f} B" for g in front)
    only = " Faint ones are beaten in both by another." * crowded
    return Picture(
        "bytes",
        "What the bytes buy",
        _svg(figure),
        f"Final macro-F1 against bytes, a point per combination{_named_by(findings)}; bars are one "
        f"standard deviation over seeds.{only} No other is both cheaper and better than those on "
        f"the line: {of_front}.",
    )


def _bars(findings: Findings, groups: Sequence[Group]) -> Picture:
    """Draw final macro-F1 as bars, a point per seed."""
    shown = list(groups)
    if len(shown) > LARGEST_BARS:
        shown = sorted(shown, key=lambda group: -(group.mean or 0.0))[:LARGEST_BARS]
    figure, axes = canvas(8.4, 1.1 + 0.32 * len(shown), "")
    ink = _Ink(findings)
    for row, group in enumerate(shown):
        axes.barh(row, group.mean or 0.0, height=0.66, color=ink.of(group), alpha=0.45)
        axes.plot(
            group.scores, [row] * len(group.scores), "o", markersize=4, color="#222222", alpha=0.8
        )
        text = f"{group.mean:.3f}" + ("" if group.spread is None else f" ± {group.spread:.3f}")
        right = max(*group.scores, group.mean or 0.0)
        axes.annotate(
            text, (right, row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_yticks(range(len(shown)), [_name(findings, group) for group in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.25 * max(score for group in shown for score in group.scores) or 1.0)
    axes.set_xlabel("final pooled macro-F1")
    cut = f" The {LARGEST_BARS} best of {len(groups)} are shown." * (len(shown) < len(groups))
    return Picture(
        "final",
        "Final macro-F1",
        _svg(figure),
        f"Bars: mean over seeds{_named_by(findings)}; points: seeds.{cut} The table below holds "
        "the same numbers.",
    )


class _Ink:
    """Colours of groups by the first axis with few enough values: the same in all pictures."""

    def __init__(self, findings: Findings) -> None:
        self.axis, self.colours = "", {}
        for axis in findings.axes:
            values = list(_by_value(findings.entries, axis))
            if 1 < len(values) <= len(NAMED):
                self.axis, self.colours = axis, dict(zip(values, _colours(values), strict=True))
                return

    def of(self, group: Group) -> str:
        return self.colours.get(group.values.get(self.axis, ""), NAMED[0])

    def explain(self, axes: Axes) -> None:
        for value, colour in self.colours.items():
            axes.plot([], [], "o", color=colour, label=label({self.axis: value}))
        if self.colours:
            axes.legend(frameon=False, fontsize=8, loc="lower right")


def _name(findings: Findings, group: Group) -> str:
    """Name a group: in full, or where that is long by its values alone."""
    if max(len(other.label) for other in findings.groups()) <= LONGEST_NAME:
        return group.label
    return " · ".join(label({key: v}).partition(" ")[2] for key, v in group.values.items())


def _named_by(findings: Findings) -> str:
    if all(_name(findings, group) == group.label for group in findings.groups()):
        return ""
    return f" (named by {' · '.join(findings.axes)})"


def _way(entry: Entry) -> Way:
    """Return (round, macro-F1) of the rounds that were evaluated."""
    return [(p.round, p.macro_f1) for p in entry.result.rounds if p.macro_f1 is not None]


def _mean_way(ways: Sequence[Way]) -> Way:
    """Return the mean by round, over rounds that all ways have: else it would jump."""
    if not ways:
        return []
    scores = [dict(way) for way in ways]
    common = set.intersection(*(set(score) for score in scores))
    return [(r, statistics.fmean(score[r] for score in scores)) for r in sorted(common)]


def _bytes_of(group: Group) -> float:
    """Return the bytes on the wire, both ways and all devices, mean over seeds; 0 without any."""
    totals = [
        sum(p.wire_bytes_up + p.wire_bytes_down for p in entry.result.rounds)
        for entry in group.entries
    ]
    return statistics.fmean(totals)


def _front(groups: Sequence[Group]) -> list[Group]:
    """Return the groups that no other beats in bytes and in macro-F1, the cheapest first."""
    found: list[Group] = []
    for group in sorted(groups, key=lambda g: (_bytes_of(g), -(g.mean or 0.0))):
        if not found or (group.mean or 0.0) > (found[-1].mean or 0.0):
            found.append(group)
    return found


def _narrow(groups: Sequence[Group]) -> bool:
    """Whether all bytes lie within a decade, so that its ends alone would be labelled."""
    sizes = [_bytes_of(group) for group in groups]
    return max(sizes) < 10 * min(sizes)


def _by_value(entries: Sequence[Entry], axis: str) -> dict[Scalar, list[Entry]]:
    found: dict[Scalar, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.values.get(axis, ""), []).append(entry)
    numbers = all(isinstance(value, (int, float)) for value in found)
    return dict(sorted(found.items(), key=lambda item: float(item[0]))) if numbers else found


def _colours(values: Sequence[Scalar]) -> list[str]:
    """Return a colour per value: along a scale for numbers, apart from each other for names."""
    if len(values) > 2 and all(isinstance(value, (int, float)) for value in values):
        scale = matplotlib.colormaps["viridis"]
        ordered = sorted(values, key=float)
        steps = {value: i / (len(values) - 1) for i, value in enumerate(ordered)}
        # The scale's yellow end is too light on white.
        return [matplotlib.colors.to_hex(scale(0.76 * steps[value])) for value in values]
    return [NAMED[i % len(NAMED)] for i in range(len(values))]


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    # The salt and the missing date make the same findings the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "corefleet"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
