"""Judging a continual run: what is served now, and what became of earlier tasks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleet.continual.metrics import pooled
from simulations.continual.devices import Devices

__all__ = ["Judge", "tasks_of"]

LARGEST_TASKS = 6


def tasks_of(changes: list[int], periods: int) -> list[tuple[int, int]]:
    """Cut a scenario at its changes into tasks.

    Args:
        changes: Periods at which something changes.
        periods: How many there are.

    Returns:
        First and last period of each task; at most :data:`LARGEST_TASKS`, evenly thinned out.

    >>> tasks_of([4, 8], 12)
    [(0, 3), (4, 7), (8, 11)]
    """
    cuts = sorted({at for at in changes if 0 < at < periods})
    most = LARGEST_TASKS - 1
    if len(cuts) > most:
        cuts = [cuts[round(i * (len(cuts) - 1) / (most - 1))] for i in range(most)]
    edges = [0, *cuts, periods]
    return [(first, last - 1) for first, last in pairwise(edges)]


class Judge:
    """Judges what devices serve on held-out windows, which nothing is ever trained on.

    Args:
        devices: The run's devices.
    """

    def __init__(self, devices: Devices) -> None:
        timeline = devices.timeline
        self._devices, self._classes = devices, len(timeline.labels)
        changes = [change.period for change in timeline.changes()]
        self.spans = tasks_of(changes, timeline.scenario.periods)

    def period(self, period: int) -> dict[str, Any]:
        """Judge what is served in a period on that period's windows, before it is learned from."""
        found = {n: self._counts(n, period) for n in self._devices.serving(period)}
        record: dict[str, Any] = {"counts": self._plain(found)}
        if self._devices.options.personal:
            record["counts_without_personal"] = self._plain(
                {n: self._counts(n, period, personal=False) for n in found}
            )
        score = pooled(list(found.values()))
        return {"macro_f1": round(score, 6) if found else float("nan"), **record}

    def after(self, period: int) -> dict[str, Any]:
        """Judge what was learned on every task, at the end of each."""
        if all(last != period for _, last in self.spans):
            return {}
        return {"tasks": self.tasks()}

    def tasks(self) -> list[list[list[int]]]:
        """Return pooled confusion counts on the windows of each task's last period."""
        tables = []
        for _, last in self.spans:
            total = np.zeros((self._classes, self._classes), np.int64)
            for number in self._devices.serving(last):
                total += self._counts(number, last)
            tables.append(total.tolist())
        return tables

    def _counts(self, number: int, period: int, *, personal: bool = True) -> NDArray[np.int64]:
        devices = self._devices
        return devices.each[number].judge(
            devices.served[number],
            devices.test(number, period),
            classes=self._classes,
            personal=personal,
        )

    def _plain(self, found: dict[int, NDArray[np.int64]]) -> dict[str, Any]:
        return {self._devices.each[n].name: table.tolist() for n, table in sorted(found.items())}
