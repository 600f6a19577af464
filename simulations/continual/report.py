"""What a continual run came to: one row per strategy, from the records of its periods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.continual import metrics
from fleet.continual.timeline import Timeline

__all__ = ["Records", "report_of", "row_of"]

Records = Sequence[Mapping[str, Any]]


def report_of(
    run: Mapping[str, Any],
    timeline: Timeline,
    periods: Mapping[str, Records],
    trained: Mapping[str, int],
) -> dict[str, Any]:
    """Return the report of a run.

    Args:
        run: What ``run.json`` keeps.
        timeline: What happened.
        periods: Records of all periods, by strategy.
        trained: Entries that each strategy trains on a device.
    """
    changes = [
        {"period": each.period, "text": each.text, "devices": len(each.devices)}
        for each in timeline.changes()
    ]
    return {
        "scenario": run["scenario"]["name"],
        "about": run["scenario"]["about"],
        "data": timeline.dataset.name,
        "labels": list(timeline.labels),
        "devices": len(timeline),
        "periods": timeline.scenario.periods,
        "seed": run["config"]["seed"],
        "folder": run["config"]["out"],
        "changes": changes,
        "strategies": {
            name: row_of(records, timeline.labels, trained[name])
            for name, records in periods.items()
        },
    }


def row_of(records: Records, labels: Sequence[str], trained: int) -> dict[str, Any]:
    """Return what one strategy came to.

    Args:
        records: Of all periods, in order.
        labels: All class names.
        trained: Entries that a device trains.

    Returns:
        Scores are macro-F1, None where they are not defined.
    """
    served = [_tables(record["counts"]) for record in records]
    over = metrics.over_time(served)
    scores, start, by_class = _tasks(records)
    row: dict[str, Any] = {
        "average_f1": _plain(over.average),
        "worst_decile_f1": _plain(over.worst_average),
        "f1": [_plain(value) for value in over.pooled],
        "worst_f1": [_plain(value) for value in over.worst_decile],
        "last_f1": _plain(over.pooled[-1]),
        "backward_transfer": _plain(metrics.backward_transfer(scores)),
        "forward_transfer": _plain(metrics.forward_transfer(scores, start)),
        "tasks": [[_plain(value) for value in line] for line in scores.tolist()],
        "forgetting": {
            label: _plain(value)
            for label, value in zip(labels, metrics.forgetting_by_class(by_class), strict=True)
        },
        "class_f1": [[_plain(value) for value in line] for line in by_class.tolist()],
        "trained_parameters": trained,
        "bytes_up": sum(record["traffic"]["bytes_up"] for record in records),
        "bytes_down": sum(record["traffic"]["bytes_down"] for record in records),
        "updates": sum(record["traffic"]["messages_up"] for record in records),
        "labels": sum(record["labels"] for record in records),
        "cpu_seconds": round(sum(record["cpu_seconds"] for record in records), 2),
        "release": records[-1]["release"][2],
        "devices_digest": records[-1]["devices_digest"],
    }
    if "counts_without_personal" in records[-1]:
        both = [(_tables(r["counts"]), _tables(r["counts_without_personal"])) for r in records]
        joined = [_joined([pair[side] for pair in both]) for side in (0, 1)]
        helped, hurt = metrics.helped(*joined)
        row |= {"personal_helped": _plain(helped), "personal_hurt": _plain(hurt)}
    return row


def _tasks(
    records: Records,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the task matrix, its start, and F1 by moment and class."""
    lines = [record["tasks"] for record in records if "tasks" in record]
    scores = np.array([[metrics.pooled([np.array(t)]) for t in line] for line in lines])
    first = records[0]["tasks_at_start"]
    start = np.array([metrics.pooled([np.array(t)]) for t in first])
    # Of each moment only the tasks so far: those to come say nothing of what was forgotten.
    by_class = np.array(
        [
            metrics.class_f1(metrics.sum_of([np.array(t) for t in line[: number + 1]]))
            for number, line in enumerate(lines)
        ]
    )
    return scores, start, by_class


def _tables(counts: Mapping[str, Any]) -> dict[str, NDArray[np.int64]]:
    return {device: np.array(table, np.int64) for device, table in counts.items()}


def _joined(periods: Sequence[Mapping[str, NDArray[np.int64]]]) -> dict[str, NDArray[np.int64]]:
    total: dict[str, NDArray[np.int64]] = {}
    for period in periods:
        for device, table in period.items():
            total[device] = total[device] + table if device in total else table
    return total


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
