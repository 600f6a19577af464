"""A grid of the continual bench at toy size, and records of cells made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulations.benchmarks.continual.grid import Grid, grid_of

TURNS = """
name = "turns"
about = "Both devices turn."
periods = 3
devices = 2
windows_per_period = 8
test_windows_per_period = 8
[[events]]
kind = "shift"
at = 1
shift = "remount:40"
"""
LACKS = """
name = "lacks"
about = "More classes than there are."
periods = 3
devices = 2
start_classes = 3
[[events]]
kind = "classes"
at = 1
count = 90
"""


def scenarios_in(folder: Path) -> dict[str, str]:
    """Write the scenarios and return their paths by name."""
    found = {}
    for name, text in (("turns", TURNS), ("lacks", LACKS)):
        path = folder / f"{name}.toml"
        path.write_text(text)
        found[name] = str(path)
    return found


def tiny_content(scenarios: dict[str, str], data: Path, /, **changes: Any) -> dict[str, Any]:
    """Return the content of a grid of two cells and two rates for one of them."""
    return {
        "scenarios": [scenarios["turns"]],
        "data": [str(data)],
        "strategies": ["fedavg-head", "core"],
        "seeds": [0],
        "base_epochs": 1,
        "rates": {"scenario": scenarios["turns"], "ladder": [0.1]},
        "training": {"core": {"rates": [0.03, 0.1]}},
    } | changes


def tiny_grid(scenarios: dict[str, str], data: Path, /, **changes: Any) -> Grid:
    """Return such a grid."""
    return grid_of(tiny_content(scenarios, data, **changes), "a test")


def made(
    strategy: str,
    scores: Sequence[float],
    *,
    scenario: str = "turns",
    bytes_up: int = 0,
    start_classes: int = 2,
    old: float = 0.5,
) -> list[dict[str, Any]]:
    """Return cells of a strategy on two data sets with two seeds each.

    Args:
        strategy: Its name.
        scores: F1 over time, by block; the worst decile is half of it.
        scenario: Its name.
        bytes_up: Sent in every cell.
        start_classes: Of the two that there are.
        old: F1 of the first class at the end.
    """
    blocks = [("one", 0), ("one", 1), ("two", 0), ("two", 1)][: len(scores)]
    return [
        {
            "scenario": scenario,
            "data": data,
            "strategy": strategy,
            "seed": seed,
            "refused": "",
            "rate": 0.1,
            "seconds": 9.0,
            "labels": ["a", "b"],
            "start_classes": start_classes,
            "changes": [{"period": 1, "text": f"new: {data}", "devices": 2}],
            "row": {
                "average_f1": score,
                "worst_decile_f1": score / 2,
                "last_f1": score,
                "f1": [score, None, 1.0],
                "backward_transfer": None,
                "forward_transfer": 0.25,
                "forgetting": {"a": 0.1, "b": None},
                "class_f1": [[1.0, None], [old, 0.0]],
                "bytes_up": bytes_up,
                "cpu_seconds": 8.0,
                "labels": 48,
            },
        }
        for (data, seed), score in zip(blocks, scores, strict=True)
    ]
