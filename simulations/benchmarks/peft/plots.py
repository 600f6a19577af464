"""Pictures of the bench, drawn without a display; each only when there is something to draw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter, NullLocator

from simulations.benchmarks.peft.rows import FULL, Condition, Row, Table, Variant
from simulations.benchmarks.peft.style import (
    FAMILIES,
    beside_points,
    canvas,
    down_the_edge,
    full_line,
    kind,
    plain,
    style,
    write,
)

__all__ = ["draw", "plot_bytes", "plot_curves", "plot_ranks", "plot_shifts"]

SWEEP = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#333333", "#999999")
LINES = 7
ERROR = "bars: ± 1 standard error of the paired difference to full"


def draw(tables: Sequence[Table], folder: Path) -> dict[str, str]:
    """Draw what the tables hold and return captions by file name.

    The heading ``main``, or else the first, is drawn against bytes and over steps; ranks and
    shifts of any heading that sweeps them.
    """
    headings = [table.setting for table in tables]
    main = "main" if "main" in headings else headings[0] if headings else ""
    made: dict[str, str] = {}
    for table in tables:
        name, where = _slug(table), table.condition.label
        if table.setting == main and any(_on_bytes(table)):
            plot_bytes(table, folder / f"bytes-{name}.png")
            made[f"bytes-{name}.png"] = f"macro-F1 against bytes per update, {where}"
        if table.setting == main and _curved(table):
            plot_curves(table, folder / f"curves-{name}.png")
            made[f"curves-{name}.png"] = f"macro-F1 by step, {where}"
        if _rank_lines(table):
            plot_ranks(table, folder / f"ranks-{name}.png")
            made[f"ranks-{name}.png"] = f"macro-F1 by rank, {table.setting}, {where}"
    for group in _by_shift(tables):
        name = _slug(group[0], shift=False)
        plot_shifts(group, folder / f"shifts-{name}.png")
        made[f"shifts-{name}.png"] = f"macro-F1 by shift, {group[0].setting}"
    return made


def plot_bytes(table: Table, path: Path) -> None:
    """Draw macro-F1 against bytes per update, a point per variant, full as a line."""
    figure, axes = canvas(8.4, 5.4, f"What an update costs and what it buys\n{_under(table)}")
    full = table.row(FULL)
    points = []
    for row in _on_bytes(table):
        size, f1 = row.overall.bytes or 0.0, _height(row, full)
        colour, marker = style(row.variant)
        hollow = row.covered < len(table.places)
        axes.errorbar(
            size,
            f1,
            yerr=row.difference.error or 0.0,
            fmt=marker,
            markersize=6,
            color=colour,
            markerfacecolor="white" if hollow else colour,
            elinewidth=1,
            zorder=3,
        )
        points.append((size, f1, row.difference.error or 0.0, _name(row), colour))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.14)
    axes.set_xlabel("size of an update (log scale)")
    axes.set_ylabel(f"{_mean_of(table)}\n({ERROR})", fontsize=9)
    full_line(axes, full.overall.mean if full else None)
    _legend(axes, table, _on_bytes(table))
    beside_points(axes, points)
    write(figure, path)


def plot_curves(table: Table, path: Path) -> None:
    """Draw the mean macro-F1 by step of at most seven variants."""
    figure, axes = canvas(7.6, 4.6, f"How fast each method learns\n{_under(table)}")
    ends = []
    for row in _curved(table):
        colour, marker = style(row.variant)
        steps, f1 = zip(*row.overall.curve, strict=True)
        composed = "+" in row.variant.method
        axes.plot(
            steps,
            f1,
            marker=marker,
            markersize=4,
            color=colour,
            linestyle="--" if composed else "-",
            linewidth=2.2 if row.variant.method == "core" else 1.4,
        )
        ends.append((float(steps[-1]), f1[-1], _name(row), colour))
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel(_mean_of(table))
    axes.set_xlim(left=0)
    _legend(axes, table, _curved(table))
    down_the_edge(axes, ends)
    write(figure, path)


def plot_ranks(table: Table, path: Path) -> None:
    """Draw macro-F1 by rank, a line per method and frame."""
    figure, axes = canvas(7.6, 4.6, f"What rank and frame are worth\n{_under(table)}")
    full = table.row(FULL)
    ends, ranks = [], set()
    lines = _rank_lines(table)
    for index, (name, rows) in enumerate(lines.items()):
        colour = SWEEP[index % len(SWEEP)]
        # A little apart, so that bars at one rank do not hide each other.
        x = [row.variant.rank * 2 ** (0.04 * (index - (len(lines) - 1) / 2)) for row in rows]
        f1 = [_height(row, full) for row in rows]
        bars = [row.difference.error or 0.0 for row in rows]
        axes.errorbar(x, f1, yerr=bars, marker="o", markersize=5, color=colour, elinewidth=1)
        dagger = " †" if any(row.overall.diverged for row in rows) else ""
        ends.append((x[-1], f1[-1], name + dagger, colour))
        ranks |= {row.variant.rank for row in rows}
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(ranks), [str(rank) for rank in sorted(ranks)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("rank (log scale)")
    axes.set_ylabel(f"{_mean_of(table)}\n({ERROR})", fontsize=9)
    full_line(axes, full.overall.mean if full else None)
    _legend(axes, table, [row for rows in lines.values() for row in rows])
    down_the_edge(axes, ends)
    write(figure, path)


def plot_shifts(tables: Sequence[Table], path: Path) -> None:
    """Draw macro-F1 by method, a panel per shift; the best on average at the top."""
    variants = _shifted(tables)
    lines = -(-len(tables) // 4)
    columns = -(-len(tables) // lines)
    figure = Figure(
        figsize=(2.0 + 2.3 * columns, lines * (0.9 + 0.27 * len(variants)) + 0.9),
        layout="constrained",
    )
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    figure.suptitle(
        f"How each method copes with a shift of the sensor\n{_under(tables[0], shift=False)}",
        fontsize=11,
    )
    for place, (axes, table) in enumerate(zip(panels.flat, tables, strict=False)):
        _shift_panel(axes, table, variants)
        axes.tick_params(labelbottom=place + columns >= len(tables))
    for axes in panels.flat[len(tables) :]:
        axes.set_visible(False)
    figure.supxlabel(
        f"{_mean_of(tables[0])}; {ERROR};\n"
        "dotted: before adapting; dashed: full fine-tuning; †: some cells diverged, left out",
        fontsize=9,
    )
    write(figure, path)


def _shift_panel(axes: Axes, table: Table, variants: Sequence[Variant]) -> None:
    plain(axes)
    full = table.row(FULL)
    if full and full.overall.mean is not None:
        axes.axvline(full.overall.mean, color=FAMILIES["full"][0], linestyle="--", linewidth=1)
        if full.overall.before is not None:
            axes.axvline(full.overall.before, color="#777777", linestyle=":", linewidth=1.2)
    for place, variant in enumerate(reversed(variants)):
        row = table.row(variant)
        if row is None or row.overall.mean is None:
            continue
        colour, marker = style(variant)
        x, error = _height(row, full), row.difference.error or 0.0
        inside = "white" if row.covered < len(table.places) else colour
        axes.errorbar(
            x, place, xerr=error, fmt=marker, color=colour, markerfacecolor=inside, elinewidth=1
        )
        if row.overall.diverged:
            axes.annotate("†", (x, place), xytext=(4, 3), textcoords="offset points", fontsize=9)
    axes.set_yticks(range(len(variants)), [v.label for v in reversed(variants)], fontsize=8)
    axes.set_ylim(-0.6, len(variants) - 0.4)
    shift = table.condition.shift
    axes.set_title("no shift" if shift == "none" else shift, fontsize=9)


def _on_bytes(table: Table) -> list[Row]:
    return [row for row in table.rows if row.overall.bytes and row.overall.mean is not None]


def _curved(table: Table) -> list[Row]:
    """Return full, the leading variant and the best of every other kind, at most seven."""
    able = [
        row for row in table.rows if len(row.overall.curve) > 2 and row.covered == len(table.places)
    ]
    wanted = [row for row in able if row.variant in (FULL, table.leading)]
    kinds = {kind(row.variant) for row in wanted}
    for row in sorted(able, key=lambda r: -(r.overall.mean or 0.0)):
        if len(wanted) < LINES and kind(row.variant) not in kinds:
            kinds.add(kind(row.variant))
            wanted.append(row)
    return wanted


def _rank_lines(table: Table) -> dict[str, list[Row]]:
    lines: dict[str, list[Row]] = {}
    for row in table.rows:
        if row.variant.rank and row.overall.mean is not None:
            lines.setdefault(row.variant._replace(rank=0).label, []).append(row)
    swept = {name: rows for name, rows in lines.items() if len(rows) > 1}
    return {name: sorted(rows, key=lambda r: r.variant.rank) for name, rows in swept.items()}


def _by_shift(tables: Sequence[Table]) -> list[list[Table]]:
    groups: dict[tuple[str, Condition], list[Table]] = {}
    for table in tables:
        key = table.setting, table.condition._replace(shift="")
        groups.setdefault(key, []).append(table)
    found = [group for group in groups.values() if len(group) > 1 and _shifted(group)]
    for group in found:
        group.sort(key=lambda t: t.condition.shift != "none")
    return found


def _shifted(tables: Sequence[Table]) -> list[Variant]:
    """Return the variants that are put to every shift, the best on average first."""
    means: dict[Variant, list[float]] = {}
    for row in (row for table in tables for row in table.rows):
        if row.overall.mean is not None:
            means.setdefault(row.variant, []).append(row.overall.mean)
    everywhere = {v: sum(m) for v, m in means.items() if len(m) == len(tables)}
    return sorted(everywhere, key=lambda v: -everywhere[v])


def _height(row: Row, full: Row | None) -> float:
    """Return where a row stands: one that lacks a set or backbone by its difference to full."""
    own = row.overall.mean or 0.0
    if full is None or full.overall.mean is None or row.covered >= full.covered:
        return own
    return own if row.difference.mean is None else full.overall.mean + row.difference.mean


def _name(row: Row) -> str:
    return f"{row.variant.label} †" if row.overall.diverged else row.variant.label


def _legend(axes: Axes, table: Table, rows: Sequence[Row]) -> None:
    """Say what hollow points and daggers mean, where there are any."""
    words = []
    if any(row.covered < len(table.places) for row in rows):
        words.append("hollow: no score on some; placed by its difference to full on the others")
    if any(row.overall.diverged for row in rows):
        words.append("†: some cells diverged and are left out")
    text = "\n".join(words)
    at = (0.99, 0.01)
    axes.annotate(text, at, xycoords="axes fraction", ha="right", fontsize=7, color="#555555")


def _under(table: Table, shift: bool = True) -> str:
    condition = table.condition if shift else table.condition._replace(shift="none")
    return f"{table.setting}: {condition.label}"


def _mean_of(table: Table) -> str:
    sets, models = ({p[i] for p in table.places} for i in (0, 1))
    many = (
        f"{len(sets)} set{'s' * (len(sets) > 1)}, {len(models)} backbone{'s' * (len(models) > 1)}"
    )
    return f"macro-F1, mean over {many}"


def _slug(table: Table, shift: bool = True) -> str:
    condition = table.condition if shift else table.condition._replace(shift="none")
    words = condition.label.replace(" split", "").replace("%", "-percent")
    return re.sub(r"[^a-z0-9.]+", "-", f"{table.setting} {words}".lower()).strip("-")
