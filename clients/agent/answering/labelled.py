"""The device's labelled windows, out of its store and as its base asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.agent.learner import Windows
from clients.agent.serving.probe import MARGIN, Probe, normalisation_of
from clients.agent.store import Store
from clients.agent.store.records import Loaded, Split
from fleet.adapt.base import BaseRecord
from fleet.adapt.digest import digest_arrays

__all__ = [
    "LARGEST_HELD_OUT",
    "LARGEST_TRAINING",
    "Labelled",
    "counted",
    "labelled",
    "probe_of",
    "raw_training",
]

LARGEST_TRAINING = 16_384
"""Windows that one training takes, the newest; bounds time and memory."""
LARGEST_HELD_OUT = 4_096
"""Windows that a release is judged on, the newest."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """What a training and an evaluation take.

    Args:
        windows: Normalised, in the order of their arrival.
        people: Whose windows train.
        digest: Names exactly these training windows with these labels.
        foreign: Windows left out because the base does not know their label.
        held_out_people: Whose each held-out window is, in their order.
    """

    windows: Windows
    people: frozenset[str]
    digest: str
    foreign: int
    held_out_people: tuple[str, ...]


def labelled(store: Store, about: BaseRecord) -> Labelled:
    """Load the labelled windows of both sides.

    Args:
        store: The device's store.
        about: The base's classes, shape and normalisation.
    """
    train, train_y, foreign = _side(store, about, "train", LARGEST_TRAINING)
    test, test_y, _ = _side(store, about, "held-out", LARGEST_HELD_OUT)
    apply = normalisation_of(about).apply
    people = frozenset(train.people)
    digest = digest_arrays({"ids": train.ids, "labels": train_y})
    windows = Windows(apply(train.x), train_y, apply(test.x), test_y)
    return Labelled(windows, people, digest, foreign, tuple(test.people))


def raw_training(
    store: Store, about: BaseRecord, newest: int = LARGEST_TRAINING
) -> tuple[Loaded, NDArray[np.int64]]:
    """Load the labelled windows that train, in the base's units, and their classes ``(n,)`` int64.

    Args:
        store: The device's store.
        about: The base's classes and shape.
        newest: Most windows.
    """
    found, classes, _ = _side(store, about, "train", newest)
    return found, classes


def probe_of(store: Store, about: BaseRecord, margin: float = MARGIN) -> Probe | None:
    """Return the held-out windows as a probe; None when there is none with a label."""
    held, classes, _ = _side(store, about, "held-out", LARGEST_HELD_OUT)
    return Probe.of_raw(about, held.x, classes, margin=margin) if len(classes) else None


def counted(counts: Mapping[tuple[str, str | None], int], about: BaseRecord) -> tuple[int, int]:
    """Return how many labelled windows there are to train on, and how many held out.

    Args:
        counts: Of ``store.windows.counts``.
        about: The base, whose classes count.
    """
    known = set(about.labels)
    train, held = (
        sum(n for (side, label), n in counts.items() if side == wanted and label in known)
        for wanted in ("train", "held-out")
    )
    return min(train, LARGEST_TRAINING), min(held, LARGEST_HELD_OUT)


def _side(
    store: Store, about: BaseRecord, split: Split, newest: int
) -> tuple[Loaded, NDArray[np.int64], int]:
    """Return a side's windows with a class of the base, their classes, and how many had another."""
    shape = (about.model.channels, about.model.window)
    found = store.windows.load(shape, split=split, labelled=True, newest=newest)
    index = {label: number for number, label in enumerate(about.labels)}
    classes = np.array([index.get(label or "", -1) for label in found.labels], dtype=np.int64)
    known = classes >= 0
    kept = Loaded(
        found.ids[known],
        found.x[known],
        tuple(label for label, one in zip(found.labels, known, strict=True) if one),
        tuple(person for person, one in zip(found.people, known, strict=True) if one),
        found.start_s[known],
        found.damaged,
    )
    return kept, classes[known], int((~known).sum())
