"""Which of a device's labelled windows train its private core, and which judge it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clients.agent.learner import Windows
from clients.agent.serving.probe import normalisation_of
from clients.agent.store.records import Loaded
from fleet.adapt.base import BaseRecord
from fleet.adapt.digest import digest_arrays
from fleet.continual.personal import held_back

__all__ = ["Sides", "overlapping", "split"]


@dataclass(frozen=True, eq=False)
class Sides:
    """Normalised windows of both sides.

    Args:
        windows: ``train`` trains, ``test`` judges; no window of one shares samples with the other.
        people: Whose windows train or judge.
        digest: Names exactly these windows with these labels.
    """

    windows: Windows
    people: frozenset[str]
    digest: str


def split(
    found: Loaded,
    classes: NDArray[np.int64],
    about: BaseRecord,
    *,
    most: int,
    rng: np.random.Generator,
) -> Sides:
    """Divide windows; on which side one is depends on its id and its neighbours alone.

    Args:
        found: Labelled windows ``(n, channels, window)`` in the base's units.
        classes: Their classes, int64 ``(n,)``.
        about: The base's window, rate and normalisation.
        most: Most windows that train; of more, so many are drawn.
        rng: Draws them.
    """
    back = held_back(found.ids)
    length_s = about.window / about.rate_hz
    trains = np.flatnonzero(~back & ~overlapping(found, back, length_s))
    if len(trains) > most:
        trains = np.sort(rng.choice(trains, most, replace=False))
    judges = np.flatnonzero(back)
    apply = normalisation_of(about).apply
    windows = Windows(
        apply(found.x[trains]), classes[trains], apply(found.x[judges]), classes[judges]
    )
    rows = np.concatenate([trains, judges])
    digest = digest_arrays(
        {
            "train": found.ids[trains],
            "train-labels": classes[trains],
            "judge": found.ids[judges],
            "judge-labels": classes[judges],
        }
    )
    return Sides(windows, frozenset(found.people[row] for row in rows), digest)


def overlapping(found: Loaded, chosen: NDArray[np.bool_], length_s: float) -> NDArray[np.bool_]:
    """Tell which windows ``(n,)`` share samples with a chosen one of the same person.

    Args:
        found: Windows with people and start times, in any order.
        chosen: Of them, bool ``(n,)``.
        length_s: Seconds that a window lasts.
    """
    shares = np.zeros(len(found.ids), dtype=bool)
    people = np.array(found.people, dtype=object)
    # Windows that touch share nothing, however their start times were rounded.
    reach = length_s * (1 - 1e-6)
    for person in set(found.people):
        own = people == person
        starts = np.sort(found.start_s[own & chosen])
        at = found.start_s[own]
        first = np.searchsorted(starts, at - reach, side="right")
        shares[own] = first < np.searchsorted(starts, at + reach, side="left")
    return shares
