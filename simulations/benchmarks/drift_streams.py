"""Long streams of real windows for ``fleet bench drift``, stable ones and ones that change.

A person of a set has a few hundred windows, a false-alarm rate needs many thousands. So a stream is
drawn, seeded, from a person's *bouts*: runs of windows of one activity in time order. Pieces of 10
to 30 windows follow one another, whole activities at random; windows within a piece stay in order,
as alike as neighbours are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.agent.watching import features_of, reference_of
from fleet.continual.signals import confidence, feature_distance, signals
from fleet.har.dataset import DataSet, select_labels
from fleet.har.normalise import Normalisation, fit
from fleet.har.partition import device_name, pool, split_people
from fleet.har.shifts import parse
from fleet.har.sources import basic_labels, find
from fleet.models.config import ModelConfig
from fleet.models.pretrain import pretrain
from fleet.seeds import generator

__all__ = ["CHANGES", "Seen", "World", "drawn", "worlds"]

SHIFTS = ("remount:35", "gain:20", "rate:20", "noise:50")
NEW_USER = "new user"
CHANGES = (*SHIFTS, NEW_USER)
PIECE = (10, 30)
BASE_WINDOWS = 3000
EPOCHS = 4

Rows = NDArray[np.int64]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a device knows of each of a person's windows, in time order.

    Attributes:
        signals: ``(n, 3)``, see :func:`fleet.continual.signals.signals`.
        plain: Confidence and feature distance, ``(n, 2)``.
        labelled: The true class and whether the prediction is wrong, ``(n, 2)``.
    """

    signals: Doubles
    plain: Doubles
    labelled: Doubles


@dataclass(frozen=True, eq=False)
class World:
    """One held-out person: windows as they are, under each shift, and as another person's.

    Attributes:
        name: Device name.
        stable: Nothing has changed.
        changed: By each of :data:`CHANGES`.
        bouts: First row and end of every bout, ``(m, 2)``, and of the other person's.
    """

    name: str
    stable: Seen
    changed: dict[str, Seen]
    bouts: Rows
    others_bouts: Rows


def worlds(data: str, seed: int, devices: int) -> Iterator[World]:
    """Train a small CNN on source people; yield what it says of held-out people's windows.

    Args:
        data: Data set by name or path, its basic classes.
        seed: Of people, base and shifts.
        devices: Most held-out people; the first of them by number.

    Raises:
        DataError: See :func:`fleet.har.sources.find`.
    """
    dataset = find(data)
    dataset = select_labels(dataset, basic_labels(dataset))
    source, fleet = split_people(dataset.subjects, seed)
    model = _Model(dataset, source, seed)
    people = [person for person in fleet if len(_rows(dataset, person))][: max(devices, 2)]
    bouts = {person: _bouts(dataset, _rows(dataset, person)) for person in people}
    stable = {person: model.see(dataset, person, "none", seed) for person in people}
    for place, person in enumerate(people[:devices]):
        other = people[(place + 1) % len(people)]
        changed = {shift: model.see(dataset, person, shift, seed) for shift in SHIFTS}
        changed[NEW_USER] = stable[other]
        name = device_name(person)
        yield World(name, stable[person], changed, bouts[person], bouts[other])


def drawn(bouts: Rows, labels: Doubles, count: int, rng: np.random.Generator, habit: int) -> Rows:
    """Draw rows of a stream.

    Args:
        bouts: ``(m, 2)``.
        labels: True class of every row.
        count: Length of the stream.
        rng: The stream's own.
        habit: Windows after which the mix of activities is drawn anew, from all mixes alike; 0 for
            bouts as frequent as they are.

    Returns:
        int64 ``(count,)``.
    """
    kinds, which = np.unique(labels[bouts[:, 0]], return_inverse=True)
    pieces: list[Rows] = []
    total, until = 0, 0
    mix = np.ones(len(kinds)) / len(kinds)
    while total < count:
        if habit and total >= until:
            mix, until = rng.dirichlet(np.ones(len(kinds))), until + habit
        likely = which == rng.choice(len(kinds), p=mix) if habit else np.ones(len(bouts), np.bool_)
        start, end = bouts[rng.choice(np.flatnonzero(likely))]
        length = min(end - start, rng.integers(PIECE[0], PIECE[1] + 1))
        first = rng.integers(start, end - length + 1)
        pieces.append(np.arange(first, first + length))
        total += length
    return np.concatenate(pieces)[:count]


class _Model:
    """A base and what its features look like on source people."""

    def __init__(self, dataset: DataSet, source: tuple[int, ...], seed: int) -> None:
        self.normalisation: Normalisation = fit(dataset, source)
        rows = pool(dataset, source)
        rng = generator(seed, 0, "server", "drift/rows")
        rows = np.sort(rng.permutation(rows)[:BASE_WINDOWS])
        config = ModelConfig(
            name="small-cnn",
            channels=len(dataset.channels),
            classes=len(dataset.labels),
            window=dataset.window,
        )
        x = self.normalisation.apply(dataset.physical(rows))
        y = dataset.y[rows].astype(np.int64)
        self.network = pretrain(config, x, y, seed=seed, epochs=EPOCHS)
        self.reference = reference_of(self.network, x)

    def see(self, dataset: DataSet, person: int, shift: str, seed: int) -> Seen:
        """Look at all windows of a person, shifted."""
        rows = _rows(dataset, person)
        x, change = dataset.physical(rows), parse(shift)
        if change is not None:
            name = device_name(person)
            x = change.apply(x, dataset.channels, dataset.rate_hz, seed=seed, device=name)
        features, logits = features_of(self.network, self.normalisation.apply(x))
        predicted, y = logits.argmax(axis=1), dataset.y[rows]
        distance = feature_distance(features, self.reference, predicted)
        return Seen(
            signals(logits, features, self.reference),
            np.stack([confidence(logits), distance], axis=1),
            np.stack([y, predicted != y], axis=1).astype(np.float64),
        )


def _rows(dataset: DataSet, person: int) -> Rows:
    rows = pool(dataset, [person])
    return rows[np.argsort(dataset.rec[rows], kind="stable")]


def _bouts(dataset: DataSet, rows: Rows) -> Rows:
    new = (np.diff(dataset.rec[rows]) != 0) | (np.diff(dataset.y[rows]) != 0)
    cuts = np.flatnonzero(new) + 1
    return np.stack([np.r_[0, cuts], np.r_[cuts, len(rows)]], axis=1)
