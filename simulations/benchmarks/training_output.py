"""The training benchmark's table, CSV and plot."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from fleet.files import atomic_path, write_text

__all__ = ["draw_table", "write_files"]

RESIDENT = ("resident_bytes", "resident_bytes_unset", "resident_before_bytes")
COLUMNS = ("trained_parameters", "saved_bytes", "dynamic_bytes", "total_bytes", "step_seconds")


def draw_table(console: Console, record: dict[str, Any], key: str) -> None:
    """Print all sides, the heaviest in ``key`` first, with the ratios that the targets name."""
    work = record["work"]
    console.print(f"$ {record['command']}", highlight=False)
    made = ", ".join(f"{name} {v}" for name, v in record["versions"].items())
    console.print(f"{record['machine']}; {made}", highlight=False, soft_wrap=True)
    title = (
        f"{work['name']}, {work['channels']}×{work['window']}, {work['classes']} classes, batch "
        f"{work['batch']} in parts of {work['micro_batch']}, {work['frame']} rank {work['rank']}"
    )
    table = Table("side", title=title)
    for name in ("trained", "saved MB", "÷ full", "peak MB", "× infer", "total MB", "÷ full"):
        table.add_column(name, justify="right")
    for name in ("step ms", "lowest–highest", "× full"):
        table.add_column(name, justify="right")
    for name, m in sorted(record["methods"].items(), key=lambda item: -item[1][key]):
        table.add_row(name, *_row(m))
    console.print(table)
    console.print("MB = 10⁶ bytes; one thread; median of interleaved steps", highlight=False)
    if "allocator" in record:
        _draw_resident(console, record)
    for name, reason in record["absent"].items():
        console.print(f"{name}: not measured, {reason}", highlight=False)


def write_files(record: dict[str, Any], key: str, folder: Path) -> None:
    """Write ``training.csv`` and ``training.png`` into a folder."""
    text, columns = io.StringIO(), (*COLUMNS, *(RESIDENT if "allocator" in record else ()))
    writer = csv.writer(text)
    writer.writerow(["method", *record["work"], *columns])
    for name, figures in record["methods"].items():
        values = [figures.get(column, "") for column in columns]
        writer.writerow([name, *record["work"].values(), *values])
    write_text(folder / "training.csv", text.getvalue())
    _plot(record, key, folder / "training.png")


def _row(m: dict[str, Any]) -> list[str]:
    ratios = m["ratios"]
    spread = f"{m['step_seconds_lowest'] * 1e3:.0f}–{m['step_seconds_highest'] * 1e3:.0f}"
    return [
        f"{m['trained_parameters']:,}",
        f"{m['saved_bytes'] / 1e6:.2f}",
        _inverse(ratios["saved_of_full"]),
        f"{m['dynamic_bytes'] / 1e6:.2f}",
        f"{ratios['dynamic_of_infer']:.2f}",
        f"{m['total_bytes'] / 1e6:.2f}",
        _inverse(ratios["total_of_full"]),
        f"{m['step_seconds'] * 1e3:.0f}",
        spread,
        f"{ratios['step_of_full']:.2f}",
    ]


def _draw_resident(console: Console, record: dict[str, Any]) -> None:
    settings = " ".join(f"{name}={value}" for name, value in record["allocator"].items())
    table = Table("side", title="peak resident set of a fresh process, above imports and data")
    for name in ("allocator set, MB", "÷ full", "unset, MB", "÷ full", "imports and data, MB"):
        table.add_column(name, justify="right")
    for name, m in record["methods"].items():
        if "resident_bytes" in m:
            own, unset, before = (f"{m[key] / 1e6:.1f}" for key in RESIDENT)
            of_full, unset_of_full = (
                _inverse(m["ratios"][key]) for key in ("resident_of_full", "resident_unset_of_full")
            )
            table.add_row(name, own, of_full, unset, unset_of_full, before)
    console.print(table)
    console.print(f"five steps; set: {settings}", highlight=False, soft_wrap=True)


def _inverse(ratio: float | None) -> str:
    return f"1/{1 / ratio:.1f}" if ratio else "–"


def _plot(record: dict[str, Any], key: str, path: Path) -> None:
    methods = sorted(record["methods"].items(), key=lambda item: item[1][key])
    unit, size = ("ms", 1e-3) if key.endswith("seconds") else ("MB", 1e6)
    figure = Figure(figsize=(6.4, 0.5 * len(methods) + 1.2), layout="constrained")
    axes = figure.subplots()
    values = [m[key] / size for _, m in methods]
    bars = axes.barh([name for name, _ in methods], values, color="#0072B2")
    axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    axes.set_xlabel(f"{key.rpartition('_')[0].replace('_', ' ')} ({unit})")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
