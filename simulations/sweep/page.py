"""A report as one HTML file that needs nothing else: pictures inside it, tables beneath them."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from simulations.sweep.figures import Picture, draw
from simulations.sweep.findings import Findings, label
from simulations.sweep.table import Row, columns, summary_rows
from simulations.versions import machine, versions

__all__ = ["page"]

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff;
       max-width: 68rem; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
p.about, figcaption, footer { color: #4a4a4a; font-size: .9rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left;
         vertical-align: top; }
th.n, td.n { text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid #888; position: sticky; top: 0; background: #fff; }
caption { text-align: left; color: #4a4a4a; padding-bottom: .4rem; }
code { font-size: .85em; }
tbody tr:hover { background: #f4f7fa; }
"""


def page(findings: Findings) -> str:
    """Return the whole page."""
    title = escape(findings.title or "Sweep")
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{title}</h1>",
        f'<p class="about">{escape(_about(findings))}</p>',
        *(_figure(picture) for picture in draw(findings)),
        "<h2>Mean over seeds</h2>",
        _summary(findings),
        *_unfinished(findings),
        "<h2>Every cell</h2>",
        _cells(findings),
        "<h2>What all cells share</h2>",
        f"<p>{escape(label(findings.common))}</p>" if findings.entries else "",
        f"<footer>{escape(_made())}</footer></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _about(findings: Findings) -> str:
    cells = len({entry.cell for entry in findings.entries})
    seeds = ", ".join(map(str, findings.seeds)) or "none"
    axes = ", ".join(findings.axes) or "none but the seed"
    text = f"{cells} cells done · axes: {axes} · seeds: {seeds}"
    if findings.unfinished:
        text += f" · {len(findings.unfinished)} cells without a result"
    return f"{text} · read from {', '.join(findings.source)}"


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.svg.encode()).decode()
    return (
        f"<h2>{escape(picture.title)}</h2>"
        f'<figure><img alt="{escape(picture.words)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(picture.words)}</figcaption></figure>"
    )


def _summary(findings: Findings) -> str:
    rows, shown = summary_rows(findings), columns(findings)
    heads = [(axis, False) for axis in findings.axes] + [(name, True) for name in shown]
    caption = (
        "Macro-F1 is pooled over devices; ± is one standard deviation over seeds. Bytes are per "
        "device and round: the packed array. Hours are simulated; where not all seeds reached the "
        "target, the mean is over those that did."
    )
    lines = (_summary_row(row, findings.axes)[: len(heads)] for row in rows)
    return _table(caption, heads, lines)


def _summary_row(row: Row, axes: Sequence[str]) -> list[str]:
    values = [label({axis: row.values[axis]}).partition(" ")[2] for axis in axes]
    return [*map(escape, values), *map(escape, row.cells())]


def _unfinished(findings: Findings) -> list[str]:
    if not findings.unfinished:
        return []
    rows = (
        [
            f"<code>{escape(each.cell)}</code>",
            escape(label({k: each.values[k] for k in (*findings.axes, "seed")})),
            escape(each.state),
            escape(f"{each.failure.code}: {each.failure.message}" if each.failure else ""),
        ]
        for each in findings.unfinished
    )
    heads = [(name, False) for name in ("cell", "values", "state", "error")]
    return ["<h2>Cells without a result</h2>", _table("", heads, rows)]


def _cells(findings: Findings) -> str:
    heads = [(axis, False) for axis in (*findings.axes, "seed")]
    heads += [("macro-F1", True), ("worst 10 %", True), ("rate", True)]
    heads += [("digest of the release", False), ("cell", False)]
    rows = (
        [
            *(
                escape(label({axis: entry.values[axis]}).partition(" ")[2])
                for axis in (*findings.axes, "seed")
            ),
            _score(entry.result.macro_f1),
            _score(entry.result.macro_f1_devices_worst_decile),
            f"{entry.result.learning_rate:g}",
            _digest(entry.result.digest),
            f"<code>{escape(entry.cell)}</code>",
        ]
        for entry in findings.entries
    )
    return _table("One row per cell and method.", heads, rows)


def _table(caption: str, heads: Sequence[tuple[str, bool]], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells are HTML already, heads say whether their column holds numbers."""
    kinds = [' class="n"' if number else "" for _, number in heads]
    head = "".join(
        f'<th scope="col"{kind}>{escape(name)}</th>'
        for (name, _), kind in zip(heads, kinds, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{said}<thead><tr>{head}</tr></thead>'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _digest(text: str) -> str:
    return f'<code title="{escape(text)}">{escape(text[:16]) or "–"}</code>'


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _made() -> str:
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    return f"Report made on {machine()}; {made}."
