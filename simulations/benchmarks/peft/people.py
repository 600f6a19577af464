"""Who is held out, who teaches the base, who plays the target while a rate is chosen.

People are put in one order by the data set's name alone and cut into two halves. A fold's target is
judged with a base trained on everyone else; its learning rates come from a rehearsal among people
of the *other* half, so that nothing of the target is ever looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fleet.errors import DataError
from fleet.har.dataset import DataSet, select_labels
from fleet.har.partition import Share, chronological, device_name, pool
from fleet.har.sources import basic_labels, find
from fleet.har.unseen import hold_out_classes
from fleet.seeds import generator

__all__ = ["Teachers", "cut", "data_of", "folds_of", "rehearsal_of", "teachers_of"]

TRAIN_FRACTION = 0.8


@dataclass(frozen=True)
class Teachers:
    """People whom a base is trained on.

    Args:
        data: Data set.
        people: Ascending.
        unseen: Classes that are kept from the base.
    """

    data: str
    people: tuple[int, ...]
    unseen: int = 0


def data_of(name: str, unseen: int = 0) -> tuple[DataSet, int]:
    """Return a data set with its basic labels, and how many of them the base sees (they lead)."""
    return _data_of(name, unseen)


@lru_cache(maxsize=8)
def _data_of(name: str, unseen: int) -> tuple[DataSet, int]:
    dataset = find(name)
    wanted = basic_labels(dataset)
    if wanted != dataset.labels:
        dataset = select_labels(dataset, wanted)
    if not unseen:
        return dataset, len(dataset.labels)
    split = hold_out_classes(dataset, unseen, seed=0)
    return split.dataset, len(split.seen)


@lru_cache(maxsize=8)  # a grid asks once per cell
@lru_cache(maxsize=8)
def folds_of(dataset: DataSet) -> tuple[int, ...]:
    """Return the people who can be held out, in the order in which folds are counted.

    Left out are those who have nothing to train on, or whose later windows show fewer than two
    classes.

    Raises:
        DataError: ``too-few-people`` when fewer than four are left.
    """
    shares = [cut(dataset, person) for person in dataset.subjects]
    usable = [s.subject for s in shares if s.usable and len(np.unique(dataset.y[s.test])) > 1]
    if len(usable) < 4:
        raise DataError(
            "too-few-people",
            f"{dataset.name} has {len(usable)} people who can be held out; the bench needs four",
            "Use a data set with more people.",
        )
    order = generator(0, 0, dataset.name, "bench/folds").permutation(len(usable))
    return tuple(usable[i] for i in order)


def teachers_of(data: str, dataset: DataSet, fold: int, unseen: int) -> Teachers:
    """Return everyone but the held-out person."""
    return Teachers(data, tuple(p for p in dataset.subjects if p != fold), unseen)


def rehearsal_of(
    data: str, dataset: DataSet, fold: int, unseen: int, players: int
) -> tuple[Teachers, tuple[int, ...]]:
    """Return who teaches and who plays the target for the rates of a fold."""
    order = folds_of(dataset)
    half = (len(order) + 1) // 2
    others = order[half:] if fold in order[:half] else order[:half]
    count = max(1, min(players, len(others) - 1))
    return Teachers(data, tuple(sorted(others[count:])), unseen), others[:count]


def cut(dataset: DataSet, person: int, split: str = "chronological", seed: int = 0) -> Share:
    """Cut a person's windows 80/20, class by class.

    ``random`` mixes windows before the cut, as published; windows overlap by half, so most test
    windows then share samples with training windows: it flatters every method.
    """
    if split == "chronological":
        return chronological(dataset, person, TRAIN_FRACTION)
    rows = pool(dataset, [person])
    rng = generator(seed, 0, device_name(person), "bench/random split")
    train = [_part(rng.permutation(rows[dataset.y[rows] == c])) for c in np.unique(dataset.y[rows])]
    taken = np.sort(np.concatenate(train))
    return Share(device_name(person), person, taken, np.setdiff1d(rows, taken))


def _part(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows[: max(1, int(len(rows) * TRAIN_FRACTION + 1e-9))]
