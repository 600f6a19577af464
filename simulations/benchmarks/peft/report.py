"""The bench's report: ``REPORT.md`` and its pictures for people, ``cells.csv`` for scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet.errors import InputError
from fleet.files import write_text
from fleet.peft.tuners import find
from simulations.benchmarks.peft.plots import draw
from simulations.benchmarks.peft.rows import (
    FULL,
    Place,
    Record,
    Row,
    Score,
    Table,
    Variant,
    condition_of,
    place_of,
    variant_of,
)
from simulations.benchmarks.peft.summary import SHARES, ranking, summarise

__all__ = ["write_report"]

HOW_TO_READ = """## How to read this

One person at a time is held out: a base is trained on everyone else, adapted for 50 steps of Adam
on batches of 64 with 80 % of the person's windows, and judged by macro-F1 over the classes of the
later 20 %; headings say where a setting differs. Every method's learning rate is swept on source
people of the other half, so that nothing of the person held out is looked at. A random split mixes
the windows before the cut and leaks, since windows overlap by half: it flatters every method.

A score is the mean ± its standard deviation over people of the means over seeds (in parentheses:
over seeds of the means over people). *Mean* weighs every set and backbone the same. *Δ full* is the
difference to full fine-tuning on the same people, splits and seeds, ± one standard error over
people (a person counts once per backbone). *To 85 %*: steps until the mean curve is at 85 % of
full's last score; in parentheses the same as time, in steps of full fine-tuning. *Exact*: whether
averaging what devices send is averaging the kernels that they serve. *Merges*: whether a network of
the base's graph serves it.
"""
DIVERGED = (
    "†n/m: n of m cells diverged; they have no score and are left out of the means and of Δ, "
    "which flatters the method."
)
COVERED = "‡n/m: the mean is over n of m columns; compare Δ, which only uses cells that both have."
CURVE = "f1_at_step_"


class _Notes:
    """Footnotes of one table, each reason once."""

    def __init__(self) -> None:
        self._found: dict[str, int] = {}

    def mark(self, reasons: Sequence[str]) -> str:
        numbers = [self._found.setdefault(r, len(self._found) + 1) for r in reasons]
        return f"<sup>{', '.join(map(str, numbers))}</sup>" if numbers else ""

    def lines(self) -> list[str]:
        return [f"<sup>{n}</sup> {_text(reason)}  " for reason, n in self._found.items()]


def write_report(
    records: Sequence[Record],
    costs: Sequence[Record],
    rates: Sequence[Record],
    header: Mapping[str, Any],
    folder: Path,
) -> list[dict[str, Any]]:
    """Write ``REPORT.md``, ``cells.csv`` and ``plots/``; return the tables' rows, flat.

    Args:
        records: Cells.
        costs: What a step of each variant costs; may be empty.
        rates: Sweeps: ``variant``, ``rate``, ``scores``, ``at_edge``.
        header: ``command``, ``machine``, ``versions``, and whatever else is to be said first.
        folder: Where to.
    """
    tables = summarise(records, costs)
    pictures = draw(tables, folder / "plots")
    parts = [_header(header, records), HOW_TO_READ]
    parts += [f"![{text}](plots/{name})\n" for name, text in pictures.items()]
    parts += [_table(table) for table in tables]
    parts += [_costs(costs)] if costs else []
    parts += [_rates(rates)] if rates else []
    write_text(folder / "cells.csv", _csv(records))
    write_text(folder / "REPORT.md", "\n".join(parts))
    return [record for table in tables for record in table.as_records()]


def _header(header: Mapping[str, Any], records: Sequence[Record]) -> str:
    lines = ["# Parameter-efficient adaptation, one person held out at a time", ""]
    if "command" in header:
        lines += ["```", f"$ {header['command']}", "```", ""]
    made = ", ".join(f"{name} {v}" for name, v in header.get("versions", {}).items())
    made_on = [part for part in (str(header.get("machine", "")), made) if part]
    lines += [f"{'; '.join(made_on)}.", ""] if made_on else []
    lines += [
        f"- {name.replace('_', ' ')}: {value}"
        for name, value in header.items()
        if name not in ("command", "machine", "versions")
    ]
    # A cell stands under every heading that asks for it and counts once.
    cells = {
        (place_of(r), variant_of(r), condition_of(r), r["fold"], r["seed"]): r for r in records
    }
    refused = sum(bool(r["refused"]) for r in cells.values())
    diverged = sum(not r["refused"] and r["macro_f1"] is None for r in cells.values())
    lines += [f"- {len(cells):,} cells; {refused:,} refused, {diverged:,} diverged", ""]
    return "\n".join(lines)


def _table(table: Table) -> str:
    notes = _Notes()
    columns = [f"{_name(p.data)} {p.model}" for p in table.places]
    columns += ["mean", "Δ full ± se", "% trained", "bytes"]
    columns += [*(f"to {share:.0%}" for share in SHARES), "merges", "exact"]
    lines = [f"## {table.setting}: {table.condition.label}", "", *_head("variant", columns)]
    lines += _before(table)
    lines += [_row(row, table.places, notes) for row in table.rows]
    lines += ["", *notes.lines()]
    if any(row.overall.diverged for row in table.rows):
        lines += [f"{DIVERGED}  "]
    if any(0 < row.covered < len(table.places) for row in table.rows):
        lines += [f"{COVERED}  "]
    return "\n".join([*lines, *_ranking(table), ""])


def _before(table: Table) -> list[str]:
    """Return the line of the base itself, which full fine-tuning starts from."""
    full = table.row(FULL)
    if full is None or full.overall.before is None:
        return []
    scores = [full.scores[p].before if p in full.scores else None for p in table.places]
    cells = [*map(_f1, scores), _f1(full.overall.before), *[""] * (4 + len(SHARES))]
    return [f"| *before* | {' | '.join([*cells, ''])} |"]


def _row(row: Row, places: Sequence[Place], notes: _Notes) -> str:
    s, d = row.overall, row.difference
    covered = f" ‡{row.covered}/{len(places)}" if 0 < row.covered < len(places) else ""
    delta = "–"
    if row.variant != FULL and d.mean is not None:
        delta = f"{d.mean:+.3f}" + ("" if d.error is None else f" ± {d.error:.3f}")
    cells = [_score(row.scores.get(place), notes) for place in places]
    cells += [_f1(s.mean) + covered, delta]
    cells += ["–" if s.trained_share is None else f"{100 * s.trained_share:.3g}"]
    cells += ["–" if s.bytes is None else f"{s.bytes:,.0f}"]
    known = row.difference.clusters > 0
    cells += [_steps(s.steps_to[n], s.full_steps_to[n]) if known else "–" for n in SHARES]
    # What never ran says nothing of merging.
    merges = {True: "yes", False: "no", None: "in part"}[s.merges] if row.covered else "–"
    return f"| {row.variant.label} | {' | '.join([*cells, merges, _exact(row.variant)])} |"


def _score(score: Score | None, notes: _Notes) -> str:
    if score is None:
        return ""
    text = "–"
    if score.mean is not None:
        text = f"{score.mean:.3f}"
        text += f" ± {score.fold_std:.3f}" if score.fold_std is not None else ""
        text += f" ({score.seed_std:.3f})" if score.seed_std is not None else ""
    text += f" †{score.diverged}/{score.cells}" if score.diverged else ""
    return text + notes.mark(score.reasons)


def _ranking(table: Table) -> list[str]:
    leading = table.row(table.leading)
    ranked = [] if leading is None else ranking(table, leading.variant)
    if leading is None or len(ranked) < 2:
        return []
    names = [f"{place}. {row.variant.label} {f1:.3f}" for place, (row, f1) in enumerate(ranked, 1)]
    share = f"{100 * (leading.overall.trained_share or 0):.3g} %"
    return [
        "",
        f"Training no more than {leading.variant.label} ({share}), the best first, over the "
        f"columns that it covers: {', '.join(names)}.",
    ]


def _costs(costs: Sequence[Record]) -> str:
    columns = ["variant", "MACs per step, M", "of full", "saved, kB", "of full"]
    columns += ["dynamic, kB", "× inference", "step, ms", "× full"]
    lines = ["## What a step costs", ""]
    lines += [
        "One thread, one step. *Saved*: bytes kept for the backward pass. *Dynamic*: most bytes "
        "held at once beyond those before the step; × those of inference.",
        "",
    ]
    lines += _head("set and backbone", columns)
    notes = _Notes()
    for c in costs:
        variant = Variant(c["method"], c["frame"], c["rank"], optimiser=c.get("optimiser", "adam"))
        if c["refused"]:
            cells = [f"–{notes.mark([c['refused']])}", *["–"] * 7]
        else:
            cells = [f"{c['macs_per_step'] / 1e6:,.1f}", f"{c['macs_of_full']:.3f}"]
            cells += [f"{c['saved_bytes'] / 1e3:,.0f}", f"{c['saved_of_full']:.3f}"]
            cells += [f"{c['dynamic_bytes'] / 1e3:,.0f}", f"{c['dynamic_of_infer']:.2f}"]
            cells += [f"{c['step_seconds'] * 1e3:.1f}", f"{c['step_of_full']:.2f}"]
        place = f"{_name(c['data'])} {c['model']}"
        lines.append(f"| {place} | {variant.label} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *notes.lines(), ""])


def _rates(rates: Sequence[Record]) -> str:
    """Tabulate rates; a variant has one per half of the people."""
    found: dict[tuple[str, str, str], list[Record]] = {}
    for sweep in rates:
        variant = sweep["variant"]
        condition = condition_of(variant)
        key = variant_of(variant).label, str(variant["model"]), condition.label
        found.setdefault(key, []).append(sweep)
    lines = ["## Learning rates", "", "One per half of the people; tried: macro-F1 by rate.", ""]
    lines += _head("variant", ["backbone", "setting", "rate", "at the ladder's edge", "tried"])
    for (name, model, where), sweeps in found.items():
        chosen = ", ".join(f"{float(s['rate']):g}" for s in sweeps)
        edge = ", ".join("**yes**" if s["at_edge"] else "no" for s in sweeps)
        tried = "; ".join(
            ", ".join(f"{r}: {_f1(f1)}" for r, f1 in s.get("scores", {}).items()) for s in sweeps
        )
        where = where.removeprefix("chronological split").removeprefix(", ") or "as published"
        lines.append(f"| {name} | {model} | {where} | {chosen} | {edge} | {tried} |")
    return "\n".join([*lines, ""])


def _csv(records: Sequence[Record]) -> str:
    """Return a line per cell; a curve becomes a column per step."""
    fields = list(dict.fromkeys(name for r in records for name in r if name != "curve"))
    steps = sorted({int(step) for r in records for step, _ in r["curve"]})
    text = io.StringIO()
    names = [*fields, *(f"{CURVE}{step}" for step in steps)]
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for r in records:
        line = {name: r[name] for name in fields if name in r}
        writer.writerow(line | {f"{CURVE}{int(step)}": f1 for step, f1 in r["curve"]})
    return text.getvalue()


def _head(first: str, columns: Sequence[str]) -> list[str]:
    return [f"| {' | '.join([first, *columns])} |", "|---" * (len(columns) + 1) + "|"]


def _exact(variant: Variant) -> str:
    try:
        return "yes" if find(variant.method).exact else "no"
    except InputError:  # a record of a method that is gone
        return "?"


def _steps(steps: float | None, full_steps: float | None) -> str:
    if steps is None:
        return "never"
    return f"{steps:.1f}" + ("" if full_steps is None else f" ({full_steps:.1f})")


def _f1(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _name(data: str) -> str:
    return _text(Path(data).name or data)


def _text(words: str) -> str:
    """Return words that do not break a table."""
    return words.replace("|", "\\|").replace("\n", " ")
