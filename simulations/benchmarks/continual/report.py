"""The bench's report: text and pictures for people, records for scripts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet.files import write_json, write_text
from simulations.benchmarks.continual.summary import (
    LIGHT_SHARE,
    REFERENCES,
    Line,
    Paired,
    Record,
    Stat,
    Table,
    is_ours,
    summarise,
)
from simulations.benchmarks.continual.verdict import Verdict, verdicts

__all__ = ["text_of", "write_report"]

COLUMNS = {
    "average_f1": "F1 over time",
    "worst_decile_f1": "worst decile",
    "last_f1": "last F1",
    "backward_transfer": "backward",
    "forward_transfer": "forward",
    "forgetting": "forgotten",
    "old_f1": "old classes, last",
    "bytes_share": "bytes up",
    "cpu_seconds": "CPU s",
    "labels": "labels",
}
LIMIT = f"{100 * LIGHT_SHARE:g} %"
EDGE = "\\*"
SIGNED = ("backward_transfer", "forward_transfer", "forgetting")
HOW_TO_READ = f"""## How to read this

Every cell is one strategy over one scenario, on one data set, with one seed; strategies of one data
set and seed (a *block*) share people, windows, labels, changes and the base, which is trained on
other people. What a device serves is judged on a period's held-out windows before anything of the
period is learned. Scores are macro-F1, mean ± standard deviation over blocks.

*F1 over time*: mean over the periods in which anybody could be judged, all devices' windows
together. *Worst decile*: mean over the same periods of the worst tenth of the devices. *Backward*:
F1 on earlier tasks at the end less F1 when they had just been learned; *forward*: F1 on a task
before it is met less the base's; *forgotten*: by how much a class was better before, mean over
classes (a task is what lies between two changes). *Bytes up*: packed updates as a share of
`fedavg-full`'s. *CPU s*: of a whole run, judging included.
*Rank*: by F1 over time / by worst decile, among strategies that send at most {LIMIT}.
`core-joint` keeps every window; it is a reference and has no rank.

Learning rates were chosen for each strategy and data set with a seed that no cell has; sets have
few people, so some of them are in both fleets. Differences are paired by block, with the 95 %
interval of Student's t over blocks; seeds of one data set share people, so intervals are somewhat
narrow. The rival is the one that turned out best, which favours it.
"""


def write_report(
    records: Sequence[Record],
    rates: Sequence[Record],
    header: Mapping[str, Any],
    folder: Path,
    copy: Path | None = None,
) -> list[Table]:
    """Write ``REPORT.md``, ``report.json`` and ``plots/``; return the tables.

    Args:
        records: Of cells.
        rates: Of sweeps.
        header: ``command``, ``machine``, ``versions``.
        folder: Where to.
        copy: Where else the text goes, without pictures.

    Raises:
        StorageError: When something cannot be written.
    """
    from simulations.benchmarks.continual.pictures import draw

    tables = summarise(records)
    pictures = draw(records, folder / "plots")
    write_text(folder / "REPORT.md", text_of(records, rates, header, pictures))
    if copy is not None:
        write_text(copy, text_of(records, rates, header))
    content = dict(header) | {
        "tables": [table.as_record() for table in tables],
        "verdicts": [each.as_record() for each in verdicts(tables)],
        "rates": list(rates),
        "cells": list(records),
    }
    write_json(folder / "report.json", content)
    return tables


def text_of(
    records: Sequence[Record],
    rates: Sequence[Record],
    header: Mapping[str, Any],
    pictures: Mapping[str, str] | None = None,
) -> str:
    """Return the report as Markdown.

    Args:
        records: Of cells.
        rates: Of sweeps.
        header: ``command``, ``machine``, ``versions``.
        pictures: Paths by scenario.
    """
    tables = summarise(records)
    parts = [_header(records, header), HOW_TO_READ, _verdict_table(verdicts(tables), len(tables))]
    for table in tables:
        picture = (pictures or {}).get(table.scenario)
        parts.append(_scenario(table, picture))
    parts += [_refused(records), _rates(rates)]
    return "\n".join(part for part in parts if part)


def _header(records: Sequence[Record], header: Mapping[str, Any]) -> str:
    made = ", ".join(f"{name} {v}" for name, v in header.get("versions", {}).items())
    refused = sum(bool(record["refused"]) for record in records)
    sets = ", ".join(dict.fromkeys(_name(record["data"]) for record in records))
    seeds = len({record["seed"] for record in records})
    hours = sum(record["seconds"] for record in records) / 3600
    lines = ["# Continual learning: every strategy over every scenario", ""]
    if "command" in header:
        lines += ["```", f"$ {header['command']}", "```", ""]
    lines += [f"{header.get('machine', '')}; {made}.", ""] if made else []
    lines += [
        f"- {len(records):,} cells, {refused:,} of which cannot be; data {sets}; {seeds} seeds",
        f"- {hours:.1f} CPU hours for the cells",
        "",
    ]
    return "\n".join(lines)


def _verdict_table(found: Sequence[Verdict], scenarios: int) -> str:
    if not found:
        return ""
    head = (
        "strategy",
        "first, F1 over time",
        "first, worst decile",
        "both",
        "≤ 1 point behind all",
    )
    lines = ["## Ours against all others", "", *_head(head)]
    for each in found:
        counts = (each.first, each.first_worst, each.first_both, each.near)
        cells = [f"`{each.strategy}`", *(f"{n} of {scenarios}" for n in counts)]
        lines.append(_row(cells))
    lines += [
        "",
        "In how many scenarios a strategy of ours is ahead of every other's that sends at most "
        f"{LIMIT} of the bytes; and in how many it is at most one point of F1 over time "
        "behind the best of all others, whatever they send.",
        "",
    ]
    return "\n".join(lines)


def _scenario(table: Table, picture: str | None) -> str:
    shown = [m for m in COLUMNS if any(line.stats[m] is not None for line in table.lines)]
    lines = [f"## {_name(table.scenario)}", ""]
    lines += [f"![F1 over time]({picture})", ""] if picture else []
    lines += _head(("strategy", *(COLUMNS[m] for m in shown), "rank"))
    ordered = sorted(table.lines, key=_best_first)
    for line in ordered:
        mark = f" ‡{line.blocks}/{table.blocks}" if line.blocks < table.blocks else ""
        cells = [f"`{line.strategy}`{mark}", *(_stat(m, line.stats[m]) for m in shown)]
        lines.append(_row([*cells, _rank(line)]))
    lines.append("")
    if any(line.blocks < table.blocks for line in table.lines):
        lines += ["‡n/m: has n of m blocks, and no rank; means over other blocks differ.", ""]
    lines += _paired("Ours less the best other at few bytes", table.against_light)
    lines += _paired("Ours less the best other, whatever it sends", table.against_all)
    lines += _paired(
        "Old classes at the end, less those with all windows kept", table.against_joint
    )
    return "\n".join(lines)


def _best_first(line: Line) -> float:
    """Return a place for a line; those without a score come last, in their own order."""
    return math.inf if line.stats["average_f1"] is None else -line.mean("average_f1")


def _paired(title: str, found: Iterable[Paired]) -> list[str]:
    rows = [
        _row(
            [
                f"`{p.strategy}` − `{p.rival}`",
                COLUMNS[p.metric],
                f"{100 * p.mean:+.1f}",
                _interval(p),
                f"{p.sets_ahead} of {p.sets}",
                str(p.blocks),
            ]
        )
        for p in found
    ]
    if not rows:
        return []
    return [*_head((title, "of", "points", "95 %", "sets ahead", "blocks")), *rows, ""]


def _interval(pair: Paired) -> str:
    if pair.low is None or pair.high is None:
        return "–"
    return f"{100 * pair.low:+.1f} … {100 * pair.high:+.1f}"


def _refused(records: Iterable[Record]) -> str:
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for r in records:
        if r["refused"]:
            reasons.setdefault((r["scenario"], _name(r["data"]), r["refused"]), []).append(
                r["strategy"]
            )
    if not reasons:
        return ""
    lines = ["## Cells that cannot be", ""]
    lines += [
        f"- {_name(scenario)} on {data}, {len(names)} cells: {reason}"
        for (scenario, data, reason), names in reasons.items()
    ]
    return "\n".join([*lines, ""])


def _rates(rates: Sequence[Record]) -> str:
    if not rates:
        return ""
    sets = list(dict.fromkeys(record["data"] for record in rates))
    names = list(dict.fromkeys(record["strategy"] for record in rates))
    first = rates[0]
    lines = ["## Learning rates", ""]
    lines += [
        f"Chosen by F1 over time on {_name(first['scenario'])} with seed {first['seed']}, which no "
        "cell has. \\* is an end of the ladder.",
        "",
        *_head(("strategy", *map(_name, sets))),
    ]
    for name in names:
        own = {r["data"]: r for r in rates if r["strategy"] == name}
        cells = [f"{own[s]['rate']:g}{EDGE * own[s]['on_edge']}" if s in own else "–" for s in sets]
        lines.append(_row([f"`{name}`", *cells]))
    return "\n".join([*lines, ""])


def _stat(metric: str, found: Stat | None) -> str:
    if found is None:
        return "–"
    if metric in ("cpu_seconds", "labels"):
        return f"{found.mean:,.0f}"
    if metric == "bytes_share":
        return f"{found.mean:.2%}"
    sign = "+" if metric in SIGNED else ""
    deviation = "" if found.sd is None else f" ± {100 * found.sd:.1f}"
    return f"{100 * found.mean:{sign}.1f}{deviation}"


def _rank(line: Line) -> str:
    if line.rank is None:
        return "ref." if line.strategy in REFERENCES else "–"
    text = f"{line.rank} / {line.worst_rank}"
    return f"**{text}**" if is_ours(line.strategy) and line.rank == 1 else text


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), _row(["---", *["---:"] * (len(names) - 1)])]


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _name(data: str) -> str:
    """Return the name of a data set or scenario, which may be a file."""
    return Path(data).stem if data.endswith((".npz", ".json", ".toml")) else data
