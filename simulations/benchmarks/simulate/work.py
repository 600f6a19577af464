"""What all sides are given, as a record that each side's process reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.config import RunConfig

__all__ = ["Work", "is_evaluated", "read_work"]


@dataclass(frozen=True)
class Work:
    """A prepared workload.

    Args:
        config: The run; ``data`` and ``base`` name files.
        full_rate: Learning rate of the sides that train all weights.
        cohorts: Devices of each round, by partition id.
        folder: Where the files are.
        sizes: Devices, channels, samples, classes and windows, for the report.
    """

    config: RunConfig
    full_rate: float
    cohorts: tuple[tuple[int, ...], ...]
    folder: Path
    sizes: Mapping[str, int]

    @property
    def path(self) -> Path:
        """The record that :func:`read_work` reads."""
        return self.folder / "work.json"

    @property
    def windows(self) -> Path:
        """Folder of the windows that are ready-made."""
        return self.folder / "windows"

    def rate(self, method: str) -> float:
        """Return the learning rate of ``core`` or ``full``."""
        return self.full_rate if method == "full" else self.config.learning_rate

    def record(self) -> dict[str, Any]:
        """Return what ``work.json`` keeps."""
        return {
            "config": self.config.model_dump(mode="json"),
            "full_rate": self.full_rate,
            "cohorts": [list(each) for each in self.cohorts],
            "sizes": dict(self.sizes),
        }


def read_work(path: Path) -> Work:
    """Read a prepared workload from its ``work.json``."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return Work(
        config=RunConfig.parse(content["config"]),
        full_rate=float(content["full_rate"]),
        cohorts=tuple(tuple(each) for each in content["cohorts"]),
        folder=path.parent,
        sizes=content["sizes"],
    )


def is_evaluated(config: RunConfig, number: int) -> bool:
    """Tell whether the model is judged after a round: every so many, and after the last."""
    return number % config.evaluate_every == 0 or number == config.rounds
