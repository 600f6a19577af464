"""Numbers of a report: a row per group for people, records for JSON, flat rows for CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from simulations.sweep.findings import Findings, Group
from simulations.sweep.recipe import Scalar

__all__ = ["Row", "cells_csv", "columns", "records", "rounds_csv", "summary_rows"]

ALWAYS = (
    "seeds",
    "macro-F1",
    "± seeds",
    "devices",
    "worst 10 %",
    "rate",
    "trained",
    "bytes up",
    "bytes down",
    "s",
)
IN_THE_FIELD = ("hours", "hours to F1")
AVERAGES = {
    "macro_f1_devices_mean": ".3f",
    "macro_f1_devices_worst_decile": ".3f",
    "learning_rate": ".4g",
    "trained_parameters": ",.0f",
    "bytes_up": ",.0f",
    "bytes_down": ",.0f",
    "seconds": ",.1f",
}
FIELD_AVERAGES = ("hours", "hours_to_target")


@dataclass(frozen=True, eq=False)
class Row:
    """One group in numbers.

    Args:
        values: What sets it apart, by axis.
        seeds: How many entries have a score.
        macro_f1: Mean of the final pooled macro-F1.
        macro_f1_std: Its sample standard deviation over seeds; None with fewer than two.
        averages: Means of the other numbers of :class:`~simulations.sweep.outcome.Result`; of the
            hours to a target over the entries that reached it.
        reached: How many entries did.
        entries: How many there are.
    """

    values: Mapping[str, Scalar]
    seeds: int
    macro_f1: float | None
    macro_f1_std: float | None
    averages: Mapping[str, float | None]
    reached: int
    entries: int

    def cells(self) -> list[str]:
        """Return the texts of all columns; :func:`columns` tells how many a report shows."""
        scores = [_text(self.macro_f1, ".3f"), _text(self.macro_f1_std, ".3f")]
        rest = [_text(self.averages[name], form) for name, form in AVERAGES.items()]
        field = [_hours(self.averages["hours"]), self._hours_to_target()]
        return [str(self.seeds), *scores, *rest, *field]

    def _hours_to_target(self) -> str:
        """Return the mean, and of how many where not all got there."""
        text = _hours(self.averages["hours_to_target"])
        all_or_none = self.reached in (0, self.entries)
        return text if all_or_none else f"{text} ({self.reached} of {self.entries})"

    def record(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "values": dict(self.values),
            "seeds": self.seeds,
            "macro_f1": self.macro_f1,
            "macro_f1_std": self.macro_f1_std,
            **self.averages,
            "reached": self.reached,
        }


def columns(findings: Findings) -> tuple[str, ...]:
    """Return the headings of :meth:`Row.cells`; hours are simulated, so only traces have them."""
    timed = any(entry.result.hours is not None for entry in findings.entries)
    return (*ALWAYS, *IN_THE_FIELD) if timed else ALWAYS


def summary_rows(findings: Findings) -> list[Row]:
    """Return a row per group."""
    return [_row(group) for group in findings.groups()]


def records(findings: Findings) -> dict[str, Any]:
    """Return all findings as JSON values."""
    return {
        "title": findings.title,
        "source": list(findings.source),
        "axes": list(findings.axes),
        "seeds": findings.seeds,
        "common": findings.common,
        "groups": [row.record() for row in summary_rows(findings)],
        "cells": [
            {"cell": entry.cell, "values": dict(entry.values), "result": asdict(entry.result)}
            for entry in findings.entries
        ],
        "unfinished": [
            {
                "cell": each.cell,
                "values": dict(each.values),
                "state": each.state,
                "failure": asdict(each.failure) if each.failure else None,
            }
            for each in findings.unfinished
        ],
    }


def cells_csv(findings: Findings) -> str:
    """Return one line per cell and method: the axes, the seed, and what it came to."""
    keys = _keys(findings)
    rows = []
    for entry in findings.entries:
        numbers = asdict(entry.result)
        del numbers["rounds"], numbers["method"]
        chosen = {key: entry.values[key] for key in keys}
        # The configured rate may be 0, "decide for me"; what was used stands beside it.
        numbers["used_learning_rate"] = numbers.pop("learning_rate")
        rows.append({"cell": entry.cell, **chosen, **numbers})
    return _csv(rows)


def rounds_csv(findings: Findings) -> str:
    """Return one line per cell, method and round."""
    keys = _keys(findings)
    return _csv(
        {"cell": entry.cell, **{key: entry.values[key] for key in keys}, **asdict(point)}
        for entry in findings.entries
        for point in entry.result.rounds
    )


def _keys(findings: Findings) -> Sequence[str]:
    """Return the keys that every line names; the method always, since cells may hold several."""
    return list(dict.fromkeys((*findings.axes, "method", "seed")))


def _row(group: Group) -> Row:
    averages = {name: group.average(name) for name in (*AVERAGES, *FIELD_AVERAGES)}
    reached = len(group.known("hours_to_target"))
    scores = (len(group.scores), group.mean, group.spread)
    return Row(group.values, *scores, averages, reached, len(group.entries))


def _csv(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = list(rows)
    text = io.StringIO()
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()


def _hours(value: float | None) -> str:
    return _text(value, ".3g" if value is not None and value < 1 else ",.2f")


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
