"""Judging a continual run: what is served now, and what became of earlier tasks."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fleet.adapt.attach import single_thread
from fleet.adapt.train import predict
from fleet.continual.metrics import pooled
from fleet.measure.f1 import confusion
from simulations.continual.chain import Chain
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
        chain: The run's bases: a device that nobody has ever reached has the first one.
    """

    def __init__(self, devices: Devices, chain: Chain) -> None:
        timeline = devices.timeline
        self._devices, self._classes = devices, len(timeline.labels)
        self._chain = chain
        changes = [change.period for change in timeline.changes()]
        self.spans = tasks_of(changes, timeline.scenario.periods)

    def period(self, period: int) -> dict[str, Any]:
        """Judge what is served in a period on that period's windows, before it is learned from.

        ``macro_f1`` is None where there is nobody, or no window, to be judged.
        """
        found = {n: self._counts(n, period) for n in self._devices.serving(period)}
        record: dict[str, Any] = {"counts": self._plain(found)}
        if self._devices.options.personal:
            record["counts_without_personal"] = self._plain(
                {n: self._without_personal(n, period, counts) for n, counts in found.items()}
            )
        score = pooled(list(found.values()))
        return {"macro_f1": None if np.isnan(score) else round(score, 6), **record}

    def after(self, period: int) -> dict[str, Any]:
        """Judge what was learned on every task, at the end of each."""
        if all(last != period for _, last in self.spans):
            return {}
        return {"tasks": self.tasks()}

    def tasks(self) -> list[list[list[int]]]:
        """Return pooled confusion counts on the windows of each task's last period.

        Of all devices that are part of the fleet then, so that moments differ in what is served
        and never in who is asked.
        """
        totals = np.zeros((len(self.spans), self._classes, self._classes), np.int64)
        # Device by device: what one serves is merged once for all tasks.
        for number in range(len(self._devices.timeline)):
            for task, (_, last) in enumerate(self.spans):
                if self._devices.timeline.present(number, last):
                    reached = number in self._devices.served
                    totals[task] += (self._counts if reached else self._at_first)(number, last)
        found: list[list[list[int]]] = totals.tolist()
        return found

    def _counts(self, number: int, period: int, *, personal: bool = True) -> NDArray[np.int64]:
        devices = self._devices
        return devices.each[number].judge(
            devices.served[number],
            devices.test(number, period),
            classes=self._classes,
            personal=personal,
        )

    def _without_personal(
        self, number: int, period: int, counts: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return counts without the private core: those that there are if none is served."""
        if not self._devices.each[number].serves_private:
            return counts
        return self._counts(number, period, personal=False)

    def _at_first(self, number: int, period: int) -> NDArray[np.int64]:
        """Return counts of a device that serves the base it was delivered with."""
        test = self._devices.test(number, period)
        with single_thread():
            predicted = predict(self._chain.bench_of(0).network, torch.from_numpy(test.x))
        return confusion(test.y, predicted, self._classes)

    def _plain(self, found: dict[int, NDArray[np.int64]]) -> dict[str, Any]:
        return {self._devices.each[n].name: table.tolist() for n, table in sorted(found.items())}
