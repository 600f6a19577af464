"""Which windows of a person a device sees in a period: drawn anew at every question, never kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleet.continual.events import Prior
from fleet.continual.scenario import Scenario
from fleet.har.dataset import DataSet
from fleet.har.partition import chronological
from fleet.seeds import generator

__all__ = ["Habits", "Person", "counts_of", "habits_of", "person_of", "take"]

Rows = NDArray[np.int64]
Mix = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Person:
    """What devices of a person draw from.

    Attributes:
        past: Of each class the rows to train on, int64, in time order; may be none.
        future: Of each class the rows to be measured on; shares no sample with the past.
        level: float32 ``[c]``, standard deviation of each channel over the past.
    """

    past: tuple[Rows, ...]
    future: tuple[Rows, ...]
    level: NDArray[np.float32]


def person_of(dataset: DataSet, train_fraction: float, person: int) -> Person:
    """Split a person's windows by time; see :func:`fleet.har.partition.chronological`."""
    share = chronological(dataset, person, train_fraction)
    level = np.zeros(len(dataset.channels), np.float32)
    if len(share.train):
        level = np.std(dataset.physical(share.train), axis=(0, 2), dtype=np.float64)
    return Person(
        _by_class(dataset, share.train), _by_class(dataset, share.test), level.astype(np.float32)
    )


@dataclass(frozen=True, eq=False)
class Habits:
    """Which class mix holds when, for the whole fleet.

    Attributes:
        epoch: int64 ``[periods]``, the period whose draw of the mix holds; -1 for a person's own.
        concentration: float64 ``[periods]``, of that draw.
        classes: int64 ``[periods]``, classes that have appeared.
    """

    epoch: Rows
    concentration: Mix
    classes: Rows


def habits_of(scenario: Scenario, classes: Rows) -> Habits:
    """Lay out the events of priors; of two at the same time the later in the file holds."""
    epoch = np.full(scenario.periods, -1, np.int64)
    concentration = np.zeros(scenario.periods)
    events = (event for event in scenario.events if isinstance(event, Prior))
    for event in sorted(events, key=lambda event: event.at):
        since = np.arange(scenario.periods - event.at)
        every = event.every or scenario.periods
        epoch[event.at :] = event.at + since // every * every
        concentration[event.at :] = event.concentration
    return Habits(epoch, concentration, classes)


def counts_of(
    habits: Habits, rows: tuple[Rows, ...], own: Mix, windows: int, seed: int, name: str, draw: str
) -> Rows:
    """Draw how many windows of each class a device sees in each period.

    Args:
        habits: Of the fleet.
        rows: Of each class the rows to draw from.
        own: float64 ``[classes]``, the person's windows of each class: its habits unless changed.
        windows: Windows per period.
        seed: The run's seed.
        name: Device name.
        draw: What the windows are for; ``past`` and ``future`` share their mix.

    Returns:
        int64 ``[periods, classes]``; a row's sum is ``windows``, or 0 where the person has none of
        the classes that have appeared. Later periods do not change earlier ones.
    """
    mixes = np.tile(own, (len(habits.epoch), 1))
    for first in np.unique(habits.epoch[habits.epoch >= 0]).tolist():
        held = habits.epoch == first
        mixes[held] = _mix(own, float(habits.concentration[held][0]), seed, first, name)
    there = np.array([len(each) > 0 for each in rows])
    may = there & (np.arange(len(rows)) < habits.classes[:, None])
    drawn = mixes * may
    # Where a drawn mix has only classes that have not appeared, the person's own must do.
    drawn = np.where(drawn.sum(axis=1, keepdims=True) > 0, drawn, own * may)
    total = drawn.sum(axis=1, keepdims=True)
    chances = np.divide(drawn, total, out=np.zeros_like(drawn), where=total > 0)
    random = generator(seed, 0, name, f"timeline/{draw}/classes")
    counts: Rows = random.multinomial(windows, chances).astype(np.int64)
    # Numpy gives what rounding leaves over to the last class, which may be one that is not there.
    stray = np.where(chances > 0, 0, counts)
    counts -= stray
    counts[np.arange(len(counts)), chances.argmax(axis=1)] += stray.sum(axis=1)
    counts[total[:, 0] == 0] = 0
    return counts


def take(rows: Rows, before: int, count: int, seed: int, name: str, purpose: str) -> Rows:
    """Draw rows without replacement until all are used up, then from the shuffled deck again.

    Args:
        rows: int64, the deck.
        before: Rows that were drawn in all earlier periods.
        count: Rows to draw.
        seed: The run's seed.
        name: Device name.
        purpose: Which deck it is.

    Returns:
        int64 ``[count]``.
    """
    if not count:
        return rows[:0]
    first, last = before // len(rows), (before + count - 1) // len(rows)
    decks = [
        generator(seed, shuffle, name, purpose).permutation(rows)
        for shuffle in range(first, last + 1)
    ]
    start = before - first * len(rows)
    drawn: Rows = np.concatenate(decks)[start : start + count]
    return drawn


def _mix(own: Mix, concentration: float, seed: int, epoch: int, name: str) -> Mix:
    mix = np.zeros(len(own))
    held = own > 0
    if held.any():
        around = concentration * own[held] / own.sum()
        mix[held] = generator(seed, epoch, name, "timeline/mix").dirichlet(around)
    # A concentration too small for floating point draws nothing.
    return mix if np.isfinite(mix).all() and mix.sum() > 0 else own


def _by_class(dataset: DataSet, rows: Rows) -> tuple[Rows, ...]:
    rows = rows[np.argsort(dataset.rec[rows], kind="stable")]
    return tuple(rows[dataset.y[rows] == label] for label in range(len(dataset.labels)))
