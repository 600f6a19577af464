"""The report of a simulation: JSON for scripts, Markdown and plots for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleet.adapt.base import Base
from fleet.files import write_json, write_text
from fleet.har.population import Population
from server.store import RunFolder
from simulations.traces.table import field_cells, field_headings
from simulations.versions import machine, versions

__all__ = ["write_report"]

Summaries = Mapping[str, Mapping[str, Any]]


def write_report(
    folder: Path,
    record: Mapping[str, Any],
    population: Population,
    base: Base,
    summaries: Summaries,
) -> dict[str, Any]:
    """Write ``report.json``, ``report.md`` and the plots; return the report's content."""
    federated = [name for name, s in summaries.items() if s["release"]]
    leading = "core" if "core" in federated else next(iter(federated), None)
    report = {
        "data": population.dataset.name,
        "classes": list(population.dataset.labels),
        "devices": record["config"]["devices"] or len(population.fleet),
        "rounds": record["config"]["rounds"],
        "before": next(iter(summaries.values()))["before"],
        "methods": {
            name: {k: v for k, v in s.items() if k != "before"} for name, s in summaries.items()
        },
        "leading": leading,
        "release": summaries[leading]["release"] if leading else None,
        "base": {"digest": base.digest, "trained_on": base.record.trained_on},
        "trace": _trace(record["config"]),
        "config": record["config"],
        "versions": versions(),
        "machine": machine(),
        "folder": str(folder),
    }
    _plots(folder, summaries)
    write_text(folder / "report.md", _markdown(report))
    write_json(folder / "report.json", report)
    return report


def _trace(config: Mapping[str, Any]) -> dict[str, Any] | None:
    if not config["trace"]:
        return None
    return {"name": config["trace"], "target_f1": config["target_f1"] or None}


def _in_the_field(report: Mapping[str, Any]) -> list[str]:
    trace = report["trace"]
    columns = ["method", *field_headings(trace["target_f1"])]
    lines = ["", f"In the field, by the trace {trace['name']}; time is simulated.", ""]
    lines += [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, summary in report["methods"].items():
        if "field" in summary:
            lines.append(f"| {' | '.join([name, *field_cells(summary['field'])])} |")
    return lines


def _plots(folder: Path, summaries: Summaries) -> None:
    # Only what draws waits for the drawing library.
    from server.plots import plot_bytes, plot_curves, plot_devices

    evaluations = {name: RunFolder(folder / name).evaluations() for name in summaries}
    evaluated = {name: found for name, found in evaluations.items() if found}
    if evaluated:
        plot_curves(evaluated, folder / "plots" / "f1-by-round.png")
        first = next(iter(evaluated.values()))[0]
        last = {name: found[-1] for name, found in evaluated.items()}
        plot_devices(first, last, folder / "plots" / "f1-by-device.png")
    if any(s["bytes_up"] and s["macro_f1"] is not None for s in summaries.values()):
        plot_bytes(summaries, folder / "plots" / "f1-by-bytes.png")


def _markdown(report: Mapping[str, Any]) -> str:
    config, before = report["config"], report["before"]
    lines = [
        f"# {report['devices']} devices, {report['rounds']} rounds on {report['data']}",
        "",
        f"Model {config['model']}, frame {config['frame']}, rank {config['rank']}, "
        f"shift {config['shift']}, seed {config['seed']}. Base `{report['base']['digest'][:12]}`, "
        f"trained on {report['base']['trained_on']}.",
        "",
        "| method | pooled macro-F1 | mean of devices | worst decile | trained | rate "
        "| bytes up | bytes down | on the wire up | on the wire down | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        f"| before | {_scores(before)} | | | | | | | |",
    ]
    for name, s in report["methods"].items():
        lines.append(
            f"| {name} | {_scores(s)} | {s['trained_parameters']:,} | {s['learning_rate']:g} | "
            f"{s['bytes_up']:,} | {s['bytes_down']:,} | {s['wire_bytes_up']:,} | "
            f"{s['wire_bytes_down']:,} | {s['seconds']:.0f} |"
        )
    if report["trace"]:
        lines += _in_the_field(report)
    release = report["release"]
    lines += ["", "Bytes are per device and round: the packed array, and beside it all objects of"]
    lines += ["the message with their framing, as Flower sends them.", ""]
    if release:
        lines += [f"Release {release['number']}: `{release['digest']}`", ""]
    lines += ["![macro-F1 by round](plots/f1-by-round.png)", ""]
    lines += ["![macro-F1 by device](plots/f1-by-device.png)", ""]
    made = ", ".join(f"{name} {v}" for name, v in report["versions"].items())
    lines += [f"{report['machine']}; {made}.", ""]
    return "\n".join(lines)


def _scores(scores: Mapping[str, Any] | None) -> str:
    names = ("macro_f1", "macro_f1_devices_mean", "macro_f1_devices_worst_decile")
    values = [None if scores is None else scores[name] for name in names]
    return " | ".join("n/a" if value is None else f"{value:.3f}" for value in values)
